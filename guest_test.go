package smallben_test

import (
	"database/sql"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"
	"gorm.io/plugin/dbresolver"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
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
			for _, table := range []string{"jobs", "smallben_runs", "smallben_job_state", "smallben_closed_spans", "smallben_locks", "smallben_processes", "smallben_ledger", "smallben_outbox"} {
				require.Contains(t, db.tables(t), prefix+table)
			}
		}
		require.Len(t, db.tables(t), 3*8+1, "and no other table")
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
		db.exec(t, "CREATE TABLE smallben_runs (id bigint PRIMARY KEY, started bigint)")
		s := testkit.Create(t, db.open(t), recordingConfig())
		err := s.Start()
		require.ErrorContains(t, err, "smallben_runs")
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
	for _, index := range []string{app + ".paused_idx", app + ".cron_paused_idx", own + ".paused_idx", app + ".smallben_runs_job_idx", app + ".cron_smallben_runs_job_idx"} {
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
	require.Len(t, db.strings(t, "SELECT tablename FROM pg_tables WHERE schemaname = '"+app+"'"), 8)
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

// GORM's settings and the pool.

func TestReadsGoWhereWritesGoUnderDBResolver(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		replica := newSQLite(t)
		if !db.sqlite() {
			replica = newPostgres(t)
		}
		replica.open(t)
		plugin := dbresolver.Register(dbresolver.Config{Replicas: []gorm.Dialector{replica.dialector()}})
		t.Cleanup(func() {
			_ = plugin.Call(func(pool gorm.ConnPool) error { return pool.(*sql.DB).Close() })
		})
		repository := db.open(t, func(config *smallben.RepositoryGormConfig) {
			config.Config.Plugins = map[string]gorm.Plugin{plugin.Name(): plugin}
		})
		s := testkit.Create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		require.Len(t, jobs, 1)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		require.ErrorIs(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}), smallben.ErrJobExists)
		require.Empty(t, list(t, replica.open(t)))
		s.Stop()
	})
}

func TestNowFuncGivesTheTimesOfRows(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		now := time.Date(2020, 1, 2, 3, 4, 5, 6789, time.FixedZone("here", 3600))
		repository := db.open(t, func(config *smallben.RepositoryGormConfig) {
			config.Config.NowFunc = func() time.Time { return now }
		})
		s := testkit.Create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		require.Equal(t, now.UTC().Truncate(time.Microsecond), jobs[0].CreatedAt())
		now = now.Add(time.Hour)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
		row := list(t, repository)[0]
		require.Equal(t, now.UTC().Truncate(time.Microsecond), row.UpdatedAt)
		require.Equal(t, jobs[0].CreatedAt(), row.CreatedAt)
	})
}

func TestATransactionAsConnIsRefused(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		for _, prepare := range []bool{false, true} {
			own, err := gorm.Open(db.dialector(), &gorm.Config{PrepareStmt: prepare, Logger: logger.Discard})
			require.NoError(t, err)
			tx := own.Begin()
			require.NoError(t, tx.Error)
			conn := tx.Statement.ConnPool
			given := postgres.New(postgres.Config{Conn: conn})
			if db.sqlite() {
				given = sqlite.New(sqlite.Config{Conn: conn})
			}
			_, err = smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: given})
			require.ErrorContains(t, err, "is a transaction")
			require.NoError(t, tx.Rollback().Error)
			pool, err := own.DB()
			require.NoError(t, err)
			require.NoError(t, pool.Close())
			require.Empty(t, db.tables(t))
		}
	})
}

func TestAPoolThatWasGivenKeepsItsLimitsAndItsConnectionsTheirSettings(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		pool := testkit.OpenSQLDB(t, map[bool]string{true: "sqlite3", false: "pgx"}[db.sqlite()], db.dsn)
		t.Cleanup(func() { require.NoError(t, pool.Close()) })
		pool.SetMaxOpenConns(1)
		settings := []string{"PRAGMA busy_timeout", "PRAGMA cache_spill"}
		if db.sqlite() {
			_, err := pool.Exec("PRAGMA busy_timeout = 1234; PRAGMA cache_spill = 77")
			require.NoError(t, err)
		} else {
			settings = []string{"SHOW plan_cache_mode", "SHOW enable_seqscan", "SHOW jit", "SHOW idle_in_transaction_session_timeout", "SHOW transaction_isolation"}
		}
		look := func() (values []string) {
			for _, setting := range settings {
				var value string
				require.NoError(t, pool.QueryRow(setting).Scan(&value))
				values = append(values, value)
			}
			return values
		}
		before := look()
		repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: db.dialectorOn(pool)})
		require.NoError(t, err)
		require.Equal(t, before, look(), "after opening")
		recordsAJob(t, repository, 1)
		require.NoError(t, repository.DeleteJobsByIds([]int64{1}))
		require.Error(t, repository.DeleteJobsByIds([]int64{1}))
		require.Equal(t, before, look())
		require.Equal(t, 1, pool.Stats().MaxOpenConnections)
	})
}

func TestPluginsAndOtherSettingsOfGORMDoNoHarm(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		counter := &statementCounter{}
		repository := db.open(t, func(config *smallben.RepositoryGormConfig) {
			config.Config = gorm.Config{
				Plugins: map[string]gorm.Plugin{"counter": counter}, DryRun: true, PrepareStmt: true, CreateBatchSize: 2, TranslateError: true, QueryFields: true,
				FullSaveAssociations: true, DisableNestedTransaction: true, DefaultContextTimeout: time.Nanosecond, DefaultTransactionTimeout: time.Nanosecond,
			}
		})
		require.NoError(t, repository.AddJobs(withSchedule(t, rawJobs(1, 2, 3)...)))
		err := repository.AddJobs(withSchedule(t, rawJob(3)))
		require.ErrorIs(t, err, smallben.ErrJobExists)
		require.Len(t, list(t, repository), 3)
		require.Positive(t, counter.statements.Load())
	})
}

// statementCounter is a plugin of GORM that counts statements.
type statementCounter struct{ statements atomic.Int64 }

func (*statementCounter) Name() string { return "counter" }

func (c *statementCounter) Initialize(db *gorm.DB) error {
	count := func(*gorm.DB) { c.statements.Add(1) }
	return errors.Join(db.Callback().Raw().Before("*").Register("counter:raw", count), db.Callback().Row().Before("*").Register("counter:row", count))
}

// Connections that are alive and useless.

func TestAWidenedColumnFailsNoCall(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	db.exec(t, tableWith("group_id", "bigint"))
	pool := testkit.OpenSQLDB(t, "pgx", db.dsn)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	pool.SetMaxIdleConns(4)
	repository := testkit.OpenGorm(t, testkit.OnPostgres(pool), 0)
	require.NoError(t, repository.AddJobs(withSchedule(t, rawJob(1))))
	useAll := func() {
		var calls sync.WaitGroup
		for range 8 {
			calls.Go(func() {
				for range 4 {
					_, err := repository.ListJobs(nil)
					assert.NoError(t, err)
					assert.NoError(t, repository.PauseJobs([]smallben.RawJob{{ID: 1}}))
				}
			})
		}
		calls.Wait()
	}
	useAll()
	db.exec(t, "ALTER TABLE jobs ALTER COLUMN super_group_id TYPE bigint")
	useAll()
	row := rawJob(2)
	row.SuperGroupID = 1 << 40
	require.NoError(t, repository.AddJobs(withSchedule(t, row)))
}

func TestConnectionsThatBecameReadOnlyAreDropped(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	pool := testkit.OpenSQLDB(t, "pgx", db.dsn)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	pool.SetMaxIdleConns(4)
	repository := testkit.OpenGorm(t, testkit.OnPostgres(pool), 0)
	var conns []*sql.Conn
	for range 4 {
		conn, err := pool.Conn(t.Context())
		require.NoError(t, err)
		_, err = conn.ExecContext(t.Context(), "SET default_transaction_read_only = on")
		require.NoError(t, err)
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
	require.NoError(t, repository.AddJobs(withSchedule(t, rawJob(1))))
	require.NoError(t, repository.PauseJobs([]smallben.RawJob{{ID: 1}}))
}

func TestADatabaseThatIsReadOnlyIsAnError(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	db.open(t)
	readOnly := &database{name: db.name, dsn: db.dsn + "&default_transaction_read_only=on"}
	repository := readOnly.open(t)
	err := repository.AddJobs(withSchedule(t, rawJob(1)))
	require.ErrorContains(t, err, "read-only")
	require.Empty(t, list(t, repository))
}

func TestAConnectionWhosePeerIsGoneCostsSeconds(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.DSN(t))
	pool := testkit.OpenSQLDB(t, "pgx", proxy.DSN())
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	pool.SetMaxIdleConns(8)
	repository := testkit.OpenGorm(t, testkit.OnPostgres(pool), 0)
	var calls sync.WaitGroup
	for id := range int64(8) {
		calls.Go(func() { assert.NoError(t, repository.AddJobs(withSchedule(t, rawJob(id+1)))) })
	}
	calls.Wait()
	for name, call := range map[string]func() error{
		"read":  func() error { _, err := repository.ListJobs(nil); return err },
		"write": func() error { return repository.PauseJobs([]smallben.RawJob{{ID: 1}}) },
	} {
		proxy.Forget()
		start := time.Now()
		require.NoError(t, call(), name)
		require.Less(t, time.Since(start), 10*time.Second, name)
	}
	proxy.Pass()
}

// Poolers.

func TestAPoolerInTransactionModeNeedsNothing(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	db := newDatabase(t, "PostgreSQL", dsn, "pgx")
	own := db.strings(t, "SELECT current_schema()")[0]
	bounced := pgtest.Bouncer(t, dsn, 3)
	for _, mode := range []string{"", "exec", "simple_protocol", "cache_describe", "describe_exec"} {
		t.Run(mode, func(t *testing.T) {
			dsn := bounced
			if mode != "" {
				dsn += "&default_query_exec_mode=" + mode
			}
			through := &database{name: db.name, dsn: dsn}
			var repositories []*smallben.RepositoryGorm
			for range 2 {
				repositories = append(repositories, through.open(t, prefixed(own+"."+strings.ReplaceAll(mode, "_", "")+"_")))
			}
			var calls sync.WaitGroup
			for i := range int64(8) {
				calls.Go(func() {
					repository := repositories[i%2]
					for n := range int64(10) {
						id := 1 + i*100 + n
						assert.NoError(t, repository.AddJobs(withSchedule(t, rawJob(id))))
						assert.NoError(t, repository.PauseJobs([]smallben.RawJob{{ID: id}}))
						rows, err := repository.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{id}})
						assert.NoError(t, err)
						assert.Len(t, rows, 1)
						assert.NoError(t, repository.DeleteJobsByIds([]int64{id}))
					}
				})
			}
			calls.Wait()
			recordsAJob(t, repositories[0], 1)
		})
	}
}

func TestAProcessThatDoesNotRecordIsRefusedWhereOthersDo(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		plain := create(t, db.open(t), &smallben.Config{Logger: quiet})
		require.NoError(t, plain.Start(), "nobody records")
		recording := create(t, db.open(t), recordingConfig())
		require.NoError(t, recording.Start(), "as in a rolling deployment")
		runs, err := recording.Processes()
		require.NoError(t, err)
		require.NoError(t, plain.AddJobs([]smallben.Job{job(1, "@daily", idle())}), "it goes on")

		plain.Stop()
		require.ErrorContains(t, plain.Start(), "the process "+runs[0].Name+" records runs on this database, and Runs.Record is not set here")
		recording.Stop()
		require.NoError(t, plain.Start(), "all have left")
		plain.Stop()

		// Two that were killed.
		for _, silence := range []time.Duration{time.Second, 16 * time.Second} {
			db.exec(t, "INSERT INTO smallben_processes (process, beats, claims, partial, clock_offset, since_at, beat_at) VALUES ($1, 9, true, false, 0, 0, $2)",
				silence.String(), time.Now().Add(-silence).UnixMicro())
		}
		require.ErrorContains(t, plain.Start(), "the process 1s records runs")
		db.exec(t, "DELETE FROM smallben_processes WHERE process = '1s'")
		require.NoError(t, plain.Start(), "the other has expired")
	})
}
