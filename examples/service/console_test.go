package main

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/nbena/smallben"
	"github.com/stretchr/testify/require"
)

func TestTheConsoleAsksForANameAndAPassword(t *testing.T) {
	t.Parallel()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector(filepath.Join(t.TempDir(), "service.db"))})
	require.NoError(t, err)
	t.Cleanup(func() { _ = repository.Close() })
	scheduler := smallben.New(repository, nil)
	for _, password := range []string{"secret", ""} {
		service := &api{scheduler: scheduler, repository: repository}
		handler := service.handler(http.NotFoundHandler(), operators("ada", password, scheduler))
		get := func(path, name, password string) int {
			r := httptest.NewRequest("GET", path, nil)
			if name != "" {
				r.SetBasicAuth(name, password)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w.Code
		}
		for _, path := range []string{"/console/", "/console/jobs", "/console/assets/console.css"} {
			require.Equal(t, http.StatusUnauthorized, get(path, "", ""), path)
			require.Equal(t, http.StatusUnauthorized, get(path, "ada", "wrong"), path)
			require.Equal(t, http.StatusUnauthorized, get(path, "ada", ""), path)
			require.Equal(t, http.StatusUnauthorized, get(path, "bob", password), path)
			if password != "" {
				require.Equal(t, http.StatusOK, get(path, "ada", password), path)
			}
		}
	}
}
