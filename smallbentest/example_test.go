package smallbentest_test

import (
	"encoding/gob"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/smallbentest"
)

// Reminder is a job of the service under test.
type Reminder struct{ Text string }

func (r *Reminder) Run(input smallben.CronJobInput) { reminded <- input.ScheduledAt }

// reminded is what the service does: here it keeps when.
var reminded = make(chan time.Time, 1000)

func init() { gob.Register(&Reminder{}) }

func TestAReminderComesAtNineAlsoWhenClocksAreSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rome, err := time.LoadLocation("Europe/Rome")
		if err != nil {
			t.Fatal(err)
		}
		reminded = make(chan time.Time, 1000)
		scheduler := smallben.New(smallbentest.NewMemoryRepository(), &smallben.Config{
			SchedulerConfig: smallben.SchedulerConfig{WithLocation: rome},
		})
		job := smallben.Job{ID: 1, CronExpression: "0 9 * * *", Job: &Reminder{Text: "stand-up"}}
		smallbentest.CheckStored(t, job)
		if err := scheduler.AddJobs([]smallben.Job{job}); err != nil {
			t.Fatal(err)
		}
		if err := scheduler.Start(); err != nil {
			t.Fatal(err)
		}
		defer scheduler.Stop()

		time.Sleep(100 * 24 * time.Hour) // from 1 January to 10 April 2000, in a second
		synctest.Wait()                  // until the last run has ended
		if len(reminded) != 100 {
			t.Errorf("%d reminders", len(reminded))
		}
		for range len(reminded) {
			if at := (<-reminded).In(rome); at.Hour() != 9 {
				t.Errorf("a reminder at %v", at)
			}
		}
	})
}

func TestAPageShowsTheLastRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reminded = make(chan time.Time, 1000)
		scheduler := smallben.New(smallbentest.NewMemoryRepository(), nil)
		require.NoError(t, scheduler.Start())
		defer scheduler.Stop()
		require.NoError(t, scheduler.AddJobs([]smallben.Job{{ID: 1, CronExpression: "@yearly", Job: &Reminder{Text: "renew"}}}))
		require.NoError(t, scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		synctest.Wait()
		jobs, err := scheduler.ListJobs(nil)
		require.NoError(t, err)
		require.Equal(t, smallben.OutcomeOK, jobs[0].LastRun().Outcome)
	})
}

func TestTheTestOfTheREADMEIsTheExample(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	const name = "func TestAReminderComesAtNineAlsoWhenClocksAreSet("
	_, body, found := strings.Cut(string(source), name)
	require.True(t, found)
	body, _, found = strings.Cut(body, "\n}\n")
	require.True(t, found)
	require.Contains(t, string(readme), name+body+"\n}\n")
}
