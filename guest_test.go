package smallben_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm/schema"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/testkit"
)

// What RepositoryGorm makes of a database that is somebody else's.

func prefixed(prefix string) func(*smallben.RepositoryGormConfig) {
	return func(config *smallben.RepositoryGormConfig) {
		config.Config.NamingStrategy = schema.NamingStrategy{TablePrefix: prefix}
	}
}

// tables are the tables of the database, in order.
func (db *database) tables(t testing.TB) []string {
	t.Helper()
	if db.sqlite() {
		return db.strings(t, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
	}
	return db.strings(t, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename")
}

// recordsAJob starts a SmallBen that records runs, adds a job, triggers it, and
// stops.
func recordsAJob(t testing.TB, repository *smallben.RepositoryGorm, group int64) {
	t.Helper()
	s := testkit.Create(t, repository, recordingConfig())
	require.NoError(t, s.Start())
	job := job(1, "@yearly", idle())
	job.GroupID = group
	require.NoError(t, s.AddJobs([]smallben.Job{job}))
	require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
	s.Stop()
	runs, err := s.ListRuns(nil)
	require.NoError(t, err)
	require.Len(t, runs, 1)
	require.Equal(t, group, runs[0].GroupID)
}

func TestApplicationsWithPrefixesShareADatabase(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		db.exec(t, "CREATE TABLE jobs (id bigint PRIMARY KEY, queue text, payload text)")
		db.exec(t, "CREATE INDEX paused_idx ON jobs (queue)")
		billing, crm := db.open(t, prefixed("billing_")), db.open(t, prefixed("Crm_"))
		recordsAJob(t, billing, 1)
		recordsAJob(t, crm, 2)
		recordsAJob(t, db.open(t, prefixed("third")), 3)
		for _, prefix := range []string{"billing_", "Crm_", "third"} {
			for _, table := range []string{"jobs", "job_runs", "job_marks", "job_running", "job_processes", "job_record"} {
				require.Contains(t, db.tables(t), prefix+table)
			}
		}
		require.Len(t, db.tables(t), 3*6+1, "and no other table")
		require.Equal(t, int64(1), list(t, billing)[0].GroupID)
		require.Equal(t, int64(2), list(t, crm)[0].GroupID)
		require.Equal(t, int64(1), list(t, db.open(t, prefixed("billing_")))[0].GroupID, "opened again")
	})
}

func TestAForeignTableIsAnErrorThatNamesTheWayOut(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		db.exec(t, "CREATE TABLE jobs (id bigint PRIMARY KEY, queue text, payload text)")
		_, err := db.tryOpen()
		require.ErrorContains(t, err, "table jobs: column group_id is missing")
		require.ErrorContains(t, err, "TablePrefix")
		require.Equal(t, []string{"jobs"}, db.tables(t))
	})
}

func TestAForeignTableOfTheRecordIsAnErrorThatNamesTheWayOut(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		db.exec(t, "CREATE TABLE job_runs (id bigint PRIMARY KEY, started bigint)")
		s := testkit.Create(t, db.open(t), recordingConfig())
		err := s.Start()
		require.ErrorContains(t, err, "job_runs")
		require.ErrorContains(t, err, "TablePrefix")
	})
}

func TestAPrefixMayBeASchema(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	own := db.strings(t, "SELECT current_schema()")[0]
	app := own + "_app"
	_, err := db.tryOpen(prefixed(app + "."))
	require.ErrorContains(t, err, "there is no schema")
	db.exec(t, "CREATE SCHEMA "+app)
	t.Cleanup(func() { db.exec(t, "DROP SCHEMA "+app+" CASCADE") })
	recordsAJob(t, db.open(t, prefixed(app+".")), 1)
	recordsAJob(t, db.open(t, prefixed(app+".cron_")), 2)
	recordsAJob(t, db.open(t), 3)
	where := strings.Join(db.strings(t, "SELECT schemaname || '.' || indexname FROM pg_indexes WHERE schemaname LIKE '"+own+"%'"), " ")
	for _, index := range []string{app + ".paused_idx", app + ".cron_paused_idx", own + ".paused_idx", app + ".job_runs_job_idx", app + ".cron_job_runs_job_idx"} {
		require.Contains(t, where, index)
	}
	require.Equal(t, int64(2), list(t, db.open(t, prefixed(app+".cron_")))[0].GroupID)
}

func TestATableElsewhereInTheSearchPathIsNotOurs(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	recordsAJob(t, db.open(t), 1)
	own := db.strings(t, "SELECT current_schema()")[0]
	app := own + "_app"
	db.exec(t, "CREATE SCHEMA "+app)
	t.Cleanup(func() { db.exec(t, "DROP SCHEMA "+app+" CASCADE") })
	other := &database{name: db.name, dsn: strings.Replace(db.dsn, "search_path="+own, "search_path="+app+"%2C"+own, 1)}
	require.NotEqual(t, db.dsn, other.dsn)

	_, err := other.tryOpen(func(config *smallben.RepositoryGormConfig) { config.SkipMigration = true })
	require.ErrorContains(t, err, "the table jobs is missing in the schema "+app)
	recordsAJob(t, other.open(t), 2)
	require.Equal(t, int64(1), list(t, db.open(t))[0].GroupID)
	require.Len(t, db.strings(t, "SELECT tablename FROM pg_tables WHERE schemaname = '"+app+"'"), 6)
}

func TestTheSchemaStaysWhenTheSearchPathOfAConnectionChanges(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	pool := testkit.OpenSQLDB(t, "pgx", db.dsn)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	pool.SetMaxOpenConns(1)
	repository := testkit.OpenGorm(t, testkit.OnPostgres(pool), 0)
	_, err := pool.Exec("SET search_path = pg_catalog")
	require.NoError(t, err)
	require.NoError(t, repository.AddJobs(withSchedule(t, rawJob(1))))
	require.Len(t, list(t, db.open(t)), 1)
}

func TestAPrefixThatCannotBeHonouredIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		db       *database
		strategy schema.Namer
		message  string
	}{
		"schema on SQLite": {newSQLite(t), schema.NamingStrategy{TablePrefix: "app."}, "SQLite has no schemas"},
		"too long":         {newPostgres(t), schema.NamingStrategy{TablePrefix: strings.Repeat("p", 50)}, "63 bytes"},
		"other names":      {newPostgres(t), suffixes{}, "only a prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.db.tryOpen(func(config *smallben.RepositoryGormConfig) { config.Config.NamingStrategy = c.strategy })
			require.ErrorContains(t, err, c.message)
			require.Empty(t, c.db.tables(t))
		})
	}
}

// suffixes is a naming strategy that adds to the end.
type suffixes struct{ schema.NamingStrategy }

func (suffixes) JoinTableName(name string) string { return name + "_table" }

func TestColumnTypesThatChangeWhatIsStoredAreRefused(t *testing.T) {
	t.Parallel()
	for column, types := range map[string]map[string][]string{
		"id":                   {"PostgreSQL": {"text", "numeric", "double precision", "smallint"}, "SQLite": {"text", "double"}},
		"group_id":             {"PostgreSQL": {"real"}, "SQLite": {"varchar(20)"}},
		"cron_expression":      {"PostgreSQL": {"character(256)", "bytea"}, "SQLite": {"numeric"}},
		"paused":               {"PostgreSQL": {"integer", "text"}, "SQLite": {"text"}},
		"serialized_job_input": {"PostgreSQL": {"jsonb", "json"}, "SQLite": {"integer"}},
		"created_at":           {"PostgreSQL": {"timestamp", "timestamptz(3)", "date", "text"}},
		"updated_at":           {"PostgreSQL": {"timestamp(6)", "timestamptz(0)", "bigint"}},
	} {
		for database, types := range types {
			for _, kind := range types {
				t.Run(database+" "+column+" "+kind, func(t *testing.T) {
					t.Parallel()
					db := newSQLite(t)
					if database == "PostgreSQL" {
						db = newPostgres(t)
					}
					db.exec(t, tableWith(column, kind))
					_, err := db.tryOpen()
					require.ErrorContains(t, err, "table jobs: column "+column)
				})
			}
		}
	}
}

// tableWith is the table of jobs with one column of another type.
func tableWith(column, kind string) string {
	var columns []string
	for _, c := range [][2]string{{"id", "bigint PRIMARY KEY"}, {"group_id", "bigint"}, {"super_group_id", "integer"}, {"paused", "boolean"},
		{"cron_expression", "varchar(256)"}, {"cron_id", "integer"}, {"serialized_job", "text"}, {"serialized_job_input", "text"},
		{"created_at", "timestamp with time zone"}, {"updated_at", "timestamp with time zone"}} {
		if c[0] == column {
			c[1] = kind
		}
		columns = append(columns, strings.Join(c[:], " "))
	}
	return "CREATE TABLE jobs (" + strings.Join(columns, ", ") + ")"
}

func TestColumnTypesThatAreExactAreTaken(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	db.exec(t, "CREATE DOMAIN instant AS timestamptz(6)")
	for column, kinds := range map[string][]string{
		"serialized_job": {"varchar", "varchar(100000)"}, "created_at": {"timestamptz(6)", "instant"}, "group_id": {"integer"},
	} {
		for _, kind := range kinds {
			db.exec(t, "DROP TABLE IF EXISTS jobs")
			db.exec(t, tableWith(column, kind))
			repository := db.open(t)
			row := rawJob(1)
			require.NoError(t, repository.AddJobs(withSchedule(t, row)))
			assert.Equal(t, []smallben.RawJob{row}, list(t, repository), "%s %s", column, kind)
			require.NoError(t, repository.Close())
		}
	}
}
