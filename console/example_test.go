package console_test

import (
	"errors"
	"net/http"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/console"
)

// The console is mounted behind the log-in of the service, here Basic authentication.
// Everybody who may log in may look; operators may pause, resume and run jobs by hand,
// one at a time.
func ExampleNew() {
	var scheduler *smallben.SmallBen // made with smallben.New, and started
	pages := console.New(scheduler, &console.Options{
		Authorize: func(r *http.Request, action console.Action) error {
			if name, _, _ := r.BasicAuth(); name != "operator" {
				return errors.New("only operators may")
			}
			switch action.Verb {
			case console.Pause, console.Resume, console.Run:
				if len(action.JobIDs) == 1 {
					return nil
				}
			}
			return errors.New("one job at a time, and nothing that cannot be undone")
		},
		User: func(r *http.Request) string {
			name, _, _ := r.BasicAuth()
			return name
		},
	})
	logIn := func(next http.Handler) http.Handler { return next } // the service's own

	mux := http.NewServeMux()
	mux.Handle("/cron/", http.StripPrefix("/cron", logIn(pages)))
	_ = http.ListenAndServe("127.0.0.1:8080", mux)
}
