package test

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// quickstart is the program of the README.
func quickstart(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(readme), "```go\npackage main\n")
	require.True(t, found)
	program, _, found := strings.Cut(rest, "```\n")
	require.True(t, found)
	return "package main\n" + program
}

// buildProgram builds a program as one of this module.
func buildProgram(t *testing.T, source string) (path string) {
	t.Helper()
	dir := t.TempDir()
	file, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
	place, err := filepath.Abs("quickstart/main.go") // is not there
	require.NoError(t, err)
	replaced, err := json.Marshal(map[string]map[string]string{"Replace": {place: file}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(overlay, replaced, 0o600))
	path = filepath.Join(dir, "quickstart")
	flags := []string{"build", "-overlay", overlay, "-o", path}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		flags = append(flags, "-race") // as this binary: what it is made of is built already
	}
	said, err := exec.CommandContext(t.Context(), "go", append(flags, "./quickstart")...).CombinedOutput()
	require.NoError(t, err, string(said))
	return path
}

// TestTheQuickstartRemembersItsJobAndSaysATextThatWasEdited runs what a new user does:
// the program of the README, once more, and with another text.
func TestTheQuickstartRemembersItsJobAndSaysATextThatWasEdited(t *testing.T) {
	t.Parallel()
	source := quickstart(t)
	require.Equal(t, 1, strings.Count(source, "stand up"))
	first := buildProgram(t, source)
	edited := buildProgram(t, strings.Replace(source, "stand up", "sit down", 1))
	dir := t.TempDir()
	for _, start := range []struct{ program, says string }{
		{first, "job 1: stand up"}, {first, "job 1: stand up"}, {edited, "job 1: sit down"},
	} {
		cmd := exec.CommandContext(t.Context(), start.program)
		var logged strings.Builder
		cmd.Dir, cmd.Stderr = dir, &logged
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		timer := time.AfterFunc(3*time.Minute, func() { _ = cmd.Process.Kill() })
		said := false
		for lines := bufio.NewScanner(stdout); !said && lines.Scan(); {
			said = lines.Text() == start.says
		}
		require.True(t, said, "%s: %s", start.says, &logged)
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		_, _ = io.Copy(io.Discard, stdout)
		require.NoError(t, cmd.Wait())
		timer.Stop()
	}
}
