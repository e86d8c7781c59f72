package ledgersql

import "github.com/nbena/smallben/internal/sqltx"

// Tables are the tables of the record, and the fields that they have.
var Tables = []sqltx.Table{
	{Name: "smallben_runs", Fields: runFields + ", cancel_at bigint, abandon_at bigint"},
	{Name: "smallben_job_state", Fields: "job_id bigint, revision bigint, accounted_until bigint, updated_at timestamptz, deleted_at bigint, former_job text"},
	{Name: "smallben_closed_spans", Fields: "job_id bigint, revision bigint, created_at timestamptz, expression text, group_id bigint, super_group_id bigint, since_at bigint, until_at bigint, make_up boolean"},
	{Name: "smallben_locks", Fields: "process text, " + keyFields},
	{Name: "smallben_processes", Fields: "process text, version text, beats bigint, claims boolean, partial boolean, clock_offset bigint, since_at bigint, beat_at bigint"},
	{Name: "smallben_ledger", Fields: "id int, revision bigint, tokens text, location text, leader text"},
	{Name: "smallben_outbox", Fields: "job_id bigint, token text, at bigint, effect text, paused boolean, created_at timestamptz, expression text, group_id bigint, super_group_id bigint, former_job text"},
}

// Indexes are the names of the indexes.
var Indexes = []string{"smallben_runs_job_idx", "smallben_runs_group_idx", "smallben_runs_super_group_idx", "smallben_runs_notable_idx", "smallben_runs_unfinished_idx", "smallben_runs_due_idx", "smallben_runs_waiting_idx",
	"smallben_job_state_revision_idx", "smallben_job_state_live_idx", "smallben_job_state_deleted_idx"}

// Schema are the statements that create the tables of the record. Times are in
// microseconds since 1970, but for updated_at and created_at, which are as in the
// table jobs.
var Schema = []string{
	// The runs: what ran, runs, waits (due_at), was missed or lost. The key begins
	// with the tick, so that new runs are next to each other.
	`CREATE TABLE IF NOT EXISTS {smallben_runs} (
	job_id bigint NOT NULL,
	tick bigint NOT NULL,
	triggered boolean NOT NULL,
	attempt int NOT NULL,
	group_id bigint NOT NULL,
	super_group_id bigint NOT NULL,
	process text NOT NULL,
	outcome varchar(16) NOT NULL,
	started_at bigint,
	ended_at bigint,
	error text NOT NULL,
	missed bigint NOT NULL,
	first_tick bigint,
	exclusive boolean NOT NULL,
	due_at bigint,
	cancel_at bigint,
	abandon_at bigint,
	PRIMARY KEY (tick, job_id, triggered, attempt)
){without rowid}`,
	"CREATE INDEX IF NOT EXISTS {smallben_runs_job_idx} ON {smallben_runs} (job_id, tick)",
	// Each index that has all runs makes a run dearer by two entries: those of groups
	// have the runs of jobs that are in one.
	"CREATE INDEX IF NOT EXISTS {smallben_runs_group_idx} ON {smallben_runs} (group_id, tick) WHERE group_id <> 0",
	"CREATE INDEX IF NOT EXISTS {smallben_runs_super_group_idx} ON {smallben_runs} (super_group_id, tick) WHERE super_group_id <> 0",
	"CREATE INDEX IF NOT EXISTS {smallben_runs_notable_idx} ON {smallben_runs} (outcome, tick) WHERE " + notable,
	"CREATE INDEX IF NOT EXISTS {smallben_runs_unfinished_idx} ON {smallben_runs} (process) WHERE ended_at IS NULL",
	"CREATE INDEX IF NOT EXISTS {smallben_runs_due_idx} ON {smallben_runs} (due_at) WHERE due_at IS NOT NULL",
	"CREATE INDEX IF NOT EXISTS {smallben_runs_waiting_idx} ON {smallben_runs} (job_id, tick) WHERE due_at IS NOT NULL",
	// The state of each job: the revision of its last change, and its watermark.
	// A deleted job leaves a tombstone (deleted_at). former_job is the stored job before
	// an upsert of another type replaced it.
	`CREATE TABLE IF NOT EXISTS {smallben_job_state} (
	job_id bigint PRIMARY KEY,
	revision bigint NOT NULL,
	accounted_until bigint NOT NULL,
	updated_at {timestamp},
	deleted_at bigint,
	former_job text
)`,
	"CREATE INDEX IF NOT EXISTS {smallben_job_state_revision_idx} ON {smallben_job_state} (revision)",
	"CREATE INDEX IF NOT EXISTS {smallben_job_state_live_idx} ON {smallben_job_state} (job_id) WHERE deleted_at IS NULL",
	"CREATE INDEX IF NOT EXISTS {smallben_job_state_deleted_idx} ON {smallben_job_state} (deleted_at) WHERE deleted_at IS NOT NULL",
	// What is yet to be accounted for of jobs as they were before a change.
	`CREATE TABLE IF NOT EXISTS {smallben_closed_spans} (
	job_id bigint NOT NULL,
	revision bigint NOT NULL,
	created_at {timestamp},
	expression text NOT NULL,
	group_id bigint NOT NULL,
	super_group_id bigint NOT NULL,
	since_at bigint NOT NULL,
	until_at bigint NOT NULL,
	make_up boolean NOT NULL,
	PRIMARY KEY (job_id, revision)
)`,
	// The locks of jobs: which run holds one.
	`CREATE TABLE IF NOT EXISTS {smallben_locks} (
	job_id bigint PRIMARY KEY,
	process text NOT NULL,
	tick bigint NOT NULL,
	triggered boolean NOT NULL,
	attempt int NOT NULL
)`,
	// The processes that share the record, and their heartbeats.
	`CREATE TABLE IF NOT EXISTS {smallben_processes} (
	process text PRIMARY KEY,
	version text NOT NULL DEFAULT '',
	beats bigint NOT NULL,
	claims boolean NOT NULL,
	partial boolean NOT NULL,
	clock_offset bigint NOT NULL,
	since_at bigint NOT NULL,
	beat_at bigint NOT NULL
)`,
	// One row: the last revision, tokens of the last changes, and who leads.
	`CREATE TABLE IF NOT EXISTS {smallben_ledger} (
	id int PRIMARY KEY CHECK (id = 1),
	revision bigint NOT NULL,
	tokens text NOT NULL,
	location text NOT NULL,
	leader text NOT NULL
)`,
	// What transactions of the application have changed and nobody has followed yet:
	// the jobs as they were before. former_job is what that of the job's state is to be:
	// NULL if it stays, and empty if there is to be none.
	`CREATE TABLE IF NOT EXISTS {smallben_outbox} (
	job_id bigint NOT NULL,
	token text NOT NULL,
	at bigint NOT NULL,
	effect text NOT NULL,
	paused boolean NOT NULL,
	created_at {timestamp},
	expression text NOT NULL,
	group_id bigint NOT NULL,
	super_group_id bigint NOT NULL,
	former_job text,
	PRIMARY KEY (job_id, token)
)`,
}

// notable is what there is an index of, by outcome: what is not common.
const notable = "outcome <> 'ok' AND outcome <> 'running' AND outcome <> 'waiting'"

const (
	tickColumns = "tick, triggered, attempt"
	keyColumns  = "job_id, " + tickColumns
	runColumns  = keyColumns + ", group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, first_tick, exclusive, due_at"
	spanColumns = "created_at, expression, group_id, super_group_id, since_at, until_at, make_up"

	// Fields are the columns of rows that are parameters.
	idFields  = "job_id bigint"
	keyFields = "job_id bigint, tick bigint, triggered boolean, attempt int"
	runFields = keyFields + ", group_id bigint, super_group_id bigint, process text, outcome text, started_at bigint, ended_at bigint, error text, missed bigint, first_tick bigint, exclusive boolean, due_at bigint"

	sameRun  = "r.job_id = v.job_id AND r.tick = v.tick AND r.triggered = v.triggered AND r.attempt = v.attempt"
	keyOrder = " ORDER BY v.job_id, v.tick, v.triggered, v.attempt"
)
