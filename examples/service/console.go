package main

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net/http"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/console"
)

// operators returns the console for who knows a name and a password: they may do
// everything. An empty password becomes one that only the log tells.
func operators(name, password string, scheduler *smallben.SmallBen) http.Handler {
	if password == "" {
		password = rand.Text()
		slog.Info("console", "path", "/console/", "name", name, "password", password)
	}
	pages := console.New(scheduler, &console.Options{
		Authorize: func(*http.Request, console.Action) error { return nil },
		User: func(r *http.Request) string {
			name, _, _ := r.BasicAuth()
			return name
		},
		ShowInput: true,
		Title:     "Job service",
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		givenName, givenPassword, _ := r.BasicAuth()
		// Both are compared, each in a time that does not depend on what was given.
		if same(givenName, name)&same(givenPassword, password) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="console", charset="UTF-8"`)
			http.Error(w, "a name and a password, please", http.StatusUnauthorized)
			return
		}
		pages.ServeHTTP(w, r)
	})
}

func same(given, want string) int {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(a[:], b[:])
}
