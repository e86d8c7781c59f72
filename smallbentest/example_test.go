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

func TestThePreviewOfAnExpressionFromAnInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rome, err := time.LoadLocation("Europe/Rome")
		require.NoError(t, err)
		scheduler := smallben.New(smallbentest.NewMemoryRepository(), &smallben.Config{
			SchedulerConfig: smallben.SchedulerConfig{WithLocation: rome},
		})
		time.Sleep(time.Until(time.Date(2027, 3, 27, 12, 0, 0, 0, rome))) // no job runs: it takes no time
		next, err := scheduler.NextRuns("30 2 * * *", 2)
		require.NoError(t, err)
		// On the 28th there is no 02:30: the clock goes from 02:00 to 03:00.
		require.Equal(t, []time.Time{time.Date(2027, 3, 28, 3, 0, 0, 0, rome), time.Date(2027, 3, 29, 2, 30, 0, 0, rome)}, next)
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
