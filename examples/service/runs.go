package main

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

// jobRun is a run in the bodies of answers: a smallben.Run or, if runs are not
// recorded, the last one of this process.
type jobRun struct {
	Tick      time.Time        `json:"tick"`
	Outcome   smallben.Outcome `json:"outcome"`
	Process   string           `json:"process,omitempty"`
	Triggered bool             `json:"triggered"`
	Attempt   int              `json:"attempt,omitempty"`
	Due       time.Time        `json:"due,omitzero"` // of a run that waits
	Start     time.Time        `json:"start,omitzero"`
	Late      float64          `json:"late_seconds"`
	Seconds   float64          `json:"duration_seconds"`
	Error     string           `json:"error,omitempty"`
	Missed    int              `json:"missed,omitempty"`
	FirstTick time.Time        `json:"first_tick,omitzero"`
}

// listedRun is a run in a list.
type listedRun struct {
	JobID        int64 `json:"job_id"`
	GroupID      int64 `json:"group_id"`
	SuperGroupID int64 `json:"super_group_id"`
	jobRun
}

func recordedRun(run *smallben.Run) jobRun {
	out := jobRun{
		Tick:      run.Tick.UTC(),
		Outcome:   run.Outcome,
		Process:   run.Process,
		Triggered: run.Triggered,
		Attempt:   run.Attempt,
		Late:      run.Lateness().Seconds(),
		Error:     run.Error,
		Missed:    run.Missed,
	}
	switch run.Outcome {
	case smallben.OutcomeMissed:
		out.FirstTick = run.FirstTick.UTC()
	case smallben.OutcomeSkipped:
	case smallben.OutcomeWaiting:
		out.Due = run.Due.UTC()
	case smallben.OutcomeRunning, smallben.OutcomeLost: // its end is when that was found out
		out.Start = run.Start.UTC()
	default:
		out.Start = run.Start.UTC()
		out.Seconds = run.End.Sub(run.Start).Seconds()
	}
	return out
}

// lastRun returns the last run of the job: of any replica if runs are recorded,
// and else of this process.
func lastRun(job *smallben.Job) (_ jobRun, ok bool) {
	run := job.LastRun()
	return recordedRun(&run), run.Outcome != ""
}

// runs lists what was recorded, of all replicas, newest tick first.
func (a *api) runs(w http.ResponseWriter, r *http.Request) error {
	if !a.recorded {
		return badRequestf("runs are not recorded: the service was started with -record=false")
	}
	options, err := parseRunsFilter(r)
	if err != nil {
		return err
	}
	runs, err := a.scheduler.ListRuns(&options)
	if err != nil {
		return err
	}
	answer := struct {
		Runs []listedRun `json:"runs"`
	}{make([]listedRun, len(runs))}
	for i := range runs {
		answer.Runs[i] = listedRun{runs[i].JobID, runs[i].GroupID, runs[i].SuperGroupID, recordedRun(&runs[i])}
	}
	return writeJSON(w, http.StatusOK, answer)
}

// outcomes are what a recorded run may be found by.
var outcomes = []smallben.Outcome{
	smallben.OutcomeOK, smallben.OutcomeError, smallben.OutcomePanic, smallben.OutcomeTimeout,
	smallben.OutcomeRunning, smallben.OutcomeLost, smallben.OutcomeSkipped, smallben.OutcomeMissed, smallben.OutcomeWaiting,
}

// parseRunsFilter reads which runs are wanted, as parseFilter does for jobs.
func parseRunsFilter(r *http.Request) (o smallben.ListRunsOptions, err error) {
	const most = 1000
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return o, badRequestf("%w", err)
	}
	o.Limit = 100
	for key, values := range query {
		switch key {
		case "job":
			o.JobIDs, err = parseIDs(values)
		case "group":
			o.GroupIDs, err = parseIDs(values)
		case "super_group":
			o.SuperGroupIDs, err = parseIDs(values)
		case "outcome":
			o.Outcomes, err = parseOutcomes(values)
		case "from":
			o.From, err = time.Parse(time.RFC3339, values[0])
		case "before":
			o.Before, err = time.Parse(time.RFC3339, values[0])
		case "limit":
			o.Limit, err = parseNumber(values[0], most)
		default:
			return o, badRequestf("no filter %q here: there are job, group, super_group, outcome, from, before, limit", key)
		}
		if err == nil && len(values) > 1 && slices.Contains([]string{"from", "before", "limit"}, key) {
			err = fmt.Errorf("given twice")
		}
		if err != nil {
			return o, badRequestf("filter %s: %w", key, err)
		}
	}
	return o, nil
}

func parseOutcomes(values []string) ([]smallben.Outcome, error) {
	wanted := make([]smallben.Outcome, len(values))
	for i, value := range values {
		wanted[i] = smallben.Outcome(value)
		if !slices.Contains(outcomes, wanted[i]) {
			return nil, fmt.Errorf("%q is none of %s", value, strings.Trim(fmt.Sprint(outcomes), "[]"))
		}
	}
	return wanted, nil
}

// parseNumber reads a number from 1 to most.
func parseNumber(text string, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err == nil && (n < 1 || n > most) {
		err = fmt.Errorf("%d is not from 1 to %d", n, most)
	}
	return n, err
}
