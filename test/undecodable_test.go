package test

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"encoding/gob"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/pgtest"
)

// Rule 8: rows that do not decode.

// A row of versionOne is read as one of the others once it is renamed.
type (
	versionOne struct {
		Text string
		N    int
	}
	versionMore struct {
		Text  string
		N     int
		Extra []string
	}
	versionLess    struct{ Text string }
	versionRetyped struct{ Text, N string }
	versionOther   struct{ Different int }

	// What hostile rows claim to hold.
	rotMap    map[string]string
	rotHollow struct{ L []struct{} }
	rotNest   []rotNest
	rotList   struct {
		N    int
		Next *rotList
	}
	rotDecodePanics struct{ N int }
	rotDecodeLeaves struct{ N int }
)

func (versionOne) Run(smallben.CronJobInput)      {}
func (versionMore) Run(smallben.CronJobInput)     {}
func (versionLess) Run(smallben.CronJobInput)     {}
func (versionRetyped) Run(smallben.CronJobInput)  {}
func (versionOther) Run(smallben.CronJobInput)    {}
func (rotMap) Run(smallben.CronJobInput)          {}
func (rotHollow) Run(smallben.CronJobInput)       {}
func (rotNest) Run(smallben.CronJobInput)         {}
func (*rotList) Run(smallben.CronJobInput)        {}
func (rotDecodePanics) Run(smallben.CronJobInput) {}

func (rotDecodeLeaves) Run(smallben.CronJobInput) {}

func (rotDecodeLeaves) GobEncode() ([]byte, error) { return []byte("x"), nil }
func (*rotDecodeLeaves) GobDecode([]byte) error    { runtime.Goexit(); return nil }

func (rotDecodePanics) GobEncode() ([]byte, error) { return []byte("x"), nil }
func (*rotDecodePanics) GobDecode([]byte) error    { panic("no decoding today") }

func init() {
	gob.RegisterName("rot.v1", versionOne{})
	gob.RegisterName("rot.v2", versionMore{})
	gob.RegisterName("rot.v3", versionLess{})
	gob.RegisterName("rot.v4", versionRetyped{})
	gob.RegisterName("rot.v5", versionOther{})
	gob.RegisterName("rot.map", rotMap{})
	gob.RegisterName("rot.hollow", rotHollow{})
	gob.RegisterName("rot.nest", rotNest{})
	gob.RegisterName("rot.list", &rotList{})
	gob.RegisterName("rot.panics", rotDecodePanics{})
	gob.RegisterName("rot.leaves", rotDecodeLeaves{})
}

// gobOf is the gob of a job; renamed, it is that of the type of another name,
// which has as many letters.
func gobOf(j smallben.CronJob) []byte {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(&j); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func renamedGob(name string) []byte {
	return bytes.Replace(gobOf(versionOne{"text", 7}), []byte("rot.v1"), []byte(name), 1)
}

// The parts of a gob, as encoding/gob's documentation has them.

func gobUint(us ...uint64) (b []byte) {
	for _, u := range us {
		if u < 0x80 {
			b = append(b, byte(u))
			continue
		}
		var digits []byte
		for ; u > 0; u >>= 8 {
			digits = append(digits, byte(u))
		}
		b = append(b, -byte(len(digits)))
		slices.Reverse(digits)
		b = append(b, digits...)
	}
	return b
}

func gobInt(i int64) []byte {
	if i < 0 {
		return gobUint(uint64(^i)<<1 | 1)
	}
	return gobUint(uint64(i) << 1)
}

func gobBytes(parts ...[]byte) []byte {
	b := bytes.Join(parts, nil)
	return append(gobUint(uint64(len(b))), b...)
}

const (
	gobIntID, gobStringID = 2, 6
	gobID1, gobID2        = 65, 66 // the first ids of types that a row defines
)

func gobSliceDef(id, elem int64) []byte {
	return bytes.Join([][]byte{gobInt(-id), gobUint(2, 2), gobInt(elem), gobUint(0, 0)}, nil)
}

func gobMapDef(id, key, elem int64) []byte {
	return bytes.Join([][]byte{gobInt(-id), gobUint(4, 2), gobInt(key), gobUint(1), gobInt(elem), gobUint(0, 0)}, nil)
}

type gobField struct {
	name string
	id   int64
}

func gobStructDef(id int64, fields ...gobField) []byte {
	b := append(gobInt(-id), gobUint(3, 2, uint64(len(fields)))...)
	for _, f := range fields {
		b = append(append(append(b, 1), gobBytes([]byte(f.name))...), 1)
		b = append(append(b, gobInt(f.id)...), 0)
	}
	return append(b, 0, 0)
}

// forgedGob is a gob of the type that is registered by name, as gob lays it out:
// each definition in a message, the last one before the value's.
func forgedGob(name string, defs [][]byte, value ...[]byte) []byte {
	head := append(gobUint(16, 0), gobBytes([]byte(name))...) // 16: an interface
	var row []byte
	for _, def := range defs {
		row = append(row, gobBytes(head, def)...)
		head = nil
	}
	return append(row, gobBytes(head, gobInt(gobID1), gobBytes(value...))...)
}

// rotten is a way for a row to be undecodable: values to write to its columns,
// nil being NULL.
type rotten map[string]any

func rottenJob(row []byte) rotten {
	return rotten{"serialized_job": base64.StdEncoding.EncodeToString(row)}
}

// rottenRows are those that a RawJob can represent: texts in text columns.
var rottenRows = sync.OnceValue(func() map[string]rotten {
	good := gobOf(versionOne{"text", 7})
	return map[string]rotten{
		"bad base64":               {"serialized_job": "!" + base64.StdEncoding.EncodeToString(good)[1:]},
		"base64 without its end":   {"serialized_job": strings.TrimRight(base64.StdEncoding.EncodeToString(append(good, 0, 0)), "=")[1:]},
		"no job":                   {"serialized_job": ""},
		"truncated gob":            rottenJob(good[:len(good)/2]),
		"gob without its last":     rottenJob(good[:len(good)-1]),
		"gob of an unknown type":   rottenJob(renamedGob("rot.v0")),
		"field of another type":    rottenJob(renamedGob("rot.v4")),
		"no field in common":       rottenJob(renamedGob("rot.v5")),
		"trailing bytes":           rottenJob(append(bytes.Clone(good), 0)),
		"two gobs":                 rottenJob(append(bytes.Clone(good), good...)),
		"GobDecode panics":         rottenJob(gobOf(rotDecodePanics{})),
		"bad JSON":                 {"serialized_job_input": `{"a":`},
		"JSON that is no object":   {"serialized_job_input": `[1]`},
		"1e999":                    {"serialized_job_input": `{"n":1e999}`},
		"JSON and more":            {"serialized_job_input": `{} {}`},
		"JSON of 10^5 levels":      {"serialized_job_input": `{"a":` + strings.Repeat("[", 1e5) + strings.Repeat("]", 1e5) + "}"},
		"no JSON":                  {"serialized_job_input": ""},
		"no expression":            {"cron_expression": ""},
		"bad expression":           {"cron_expression": "61 * * * *"},
		"expression that panics":   {"cron_expression": "TZ=UTC"},
		"unknown zone":             {"cron_expression": "TZ=Mars/Olympus * * * * *"},
		"all of it":                {"cron_expression": "", "serialized_job": "", "serialized_job_input": ""},
		"map of 2^30 entries":      rottenJob(forgedGob("rot.map", [][]byte{gobMapDef(gobID1, gobStringID, gobStringID)}, gobUint(0, 1<<30))),
		"10^12 empty structs":      rottenJob(forgedGob("rot.hollow", [][]byte{gobStructDef(gobID1, gobField{"L", gobID2}), gobSliceDef(gobID2, gobID2+1), gobStructDef(gobID2 + 1)}, gobUint(1, 1e12))),
		"slices of 10 MiB each":    rottenJob(forgedGob("rot.nest", [][]byte{gobSliceDef(gobID1, gobID1)}, gobUint(0), bytes.Repeat(gobUint(1<<31), 1e5))),
		"slices of a million deep": rottenJob(forgedGob("rot.nest", [][]byte{gobSliceDef(gobID1, gobID1)}, gobUint(0), bytes.Repeat([]byte{1}, 7e5), gobUint(0))),
		"list of a million nodes":  rottenJob(forgedGob("rot.list", [][]byte{gobStructDef(gobID1, gobField{"N", gobIntID}, gobField{"Next", gobID1})}, bytes.Repeat([]byte{2}, 7e5))),
		"payload over 1 MiB":       rottenJob(gobOf(versionOne{Text: strings.Repeat("x", 1<<20)})),
	}
})

// rottenColumns are those that only a database can hold.
var rottenColumns = map[string]rotten{
	"NULL expression":  {"cron_expression": nil},
	"NULL job":         {"serialized_job": nil},
	"NULL input":       {"serialized_job_input": nil},
	"NULL group":       {"group_id": nil},
	"NULL super group": {"super_group_id": nil},
	"NULL cron id":     {"cron_id": nil},
	"NULL paused":      {"paused": nil},
	"NULL created_at":  {"created_at": nil},
	"NULL updated_at":  {"updated_at": nil},
	"NULL everywhere": {"cron_expression": nil, "serialized_job": nil, "serialized_job_input": nil, "group_id": nil,
		"super_group_id": nil, "cron_id": nil, "paused": nil, "created_at": nil, "updated_at": nil},
	"text in an integer column": {"super_group_id": "ten"},
}

// rotDatabase is a database whose rows a test can spoil.
type rotDatabase struct {
	smallben.Repository
	kinds map[string]rotten
	spoil func(t *testing.T, id int64, columns rotten)
	// dump tells each row from any other. With kept it leaves out what a
	// pause writes.
	dump func(t *testing.T, kept bool) map[int64]string
}

func rotMemory(*testing.T) rotDatabase {
	m := newMemoryRepository()
	return rotDatabase{
		Repository: m,
		kinds:      rottenRows(),
		spoil: func(t *testing.T, id int64, columns rotten) {
			row := rowOf(t, m, id)
			for column, value := range columns {
				switch column {
				case "serialized_job":
					row.SerializedJob = value.(string)
				case "serialized_job_input":
					row.SerializedJobInput = value.(string)
				case "cron_expression":
					row.CronExpression = value.(string)
				}
			}
			m.Put(row)
		},
		dump: func(t *testing.T, kept bool) map[int64]string {
			rows := make(map[int64]string)
			all, err := m.ListJobs(nil)
			require.NoError(t, err)
			for _, row := range all {
				if kept {
					row.Paused, row.CronID, row.UpdatedAt = false, 0, time.Time{}
				}
				rows[row.ID] = fmt.Sprint(row)
			}
			return rows
		},
	}
}

// rotTable is a table without constraints, as somebody else may have made it.
const rotTable = `CREATE TABLE jobs (id bigint PRIMARY KEY, group_id bigint, super_group_id %s, paused boolean,
	cron_expression text, cron_id bigint, serialized_job text, serialized_job_input text, created_at %s, updated_at %[2]s)`

func rotSQLite(t *testing.T) rotDatabase {
	path := filepath.Join(t.TempDir(), "jobs.db")
	db, err := sql.Open("sqlite3", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	_, err = db.Exec(fmt.Sprintf(rotTable, "bigint", "datetime"))
	require.NoError(t, err)
	kinds := maps.Clone(rottenColumns)
	maps.Copy(kinds, rottenRows())
	maps.Copy(kinds, map[string]rotten{
		"fraction in an integer column": {"group_id": 1.5},
		"text in a boolean column":      {"paused": "perhaps"},
		"text in a time column":         {"created_at": "yesterday"},
		"bytes in an integer column":    {"cron_id": []byte{0xff}},
	})
	d := rotSQL(t, db, kinds, "quote(%[1]s) || typeof(%[1]s)")
	d.Repository = openSQLite(t, path)
	return d
}

func rotPostgres(t *testing.T) rotDatabase {
	dsn := pgtest.DSN(t)
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	_, err = db.Exec(fmt.Sprintf(rotTable, "bigint", "timestamptz"))
	require.NoError(t, err)
	kinds := maps.Clone(rottenColumns)
	maps.Copy(kinds, rottenRows())
	kinds["time without end"] = rotten{"created_at": "infinity"}
	d := rotSQL(t, db, kinds, "coalesce(%s::text, 'NULL')")
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.Open(dsn)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = repository.Close() })
	// Opening refuses such a column, so somebody changes it later.
	_, err = db.Exec("ALTER TABLE jobs ALTER super_group_id TYPE text")
	require.NoError(t, err)
	d.Repository = repository
	return d
}

func rotSQL(t *testing.T, db *sql.DB, kinds map[string]rotten, text string) rotDatabase {
	exec := func(t *testing.T, query string, args ...any) {
		t.Helper()
		_, err := db.Exec(query, args...)
		require.NoError(t, err)
	}
	return rotDatabase{
		kinds: kinds,
		spoil: func(t *testing.T, id int64, columns rotten) {
			for column, value := range columns {
				exec(t, "UPDATE jobs SET "+column+" = $1 WHERE id = $2", value, id)
			}
		},
		dump: func(t *testing.T, kept bool) map[int64]string {
			columns := []string{"group_id", "super_group_id", "cron_expression", "serialized_job", "serialized_job_input", "created_at"}
			if !kept {
				columns = append(columns, "paused", "cron_id", "updated_at")
			}
			var parts []string
			for _, column := range columns {
				parts = append(parts, fmt.Sprintf(text, column))
				if strings.HasPrefix(column, "serialized") { // what is long is told by its beginning and length
					parts[len(parts)-1] = fmt.Sprintf(text, "substr("+column+", 1, 3000)")
					parts = append(parts, "coalesce(length("+column+"), -1)")
				}
			}
			rows, err := db.Query("SELECT id, " + strings.Join(parts, " || '|' || ") + " FROM jobs")
			require.NoError(t, err)
			defer rows.Close()
			dump := make(map[int64]string)
			for rows.Next() {
				var id int64
				var row string
				require.NoError(t, rows.Scan(&id, &row))
				dump[id] = row
			}
			require.NoError(t, rows.Err())
			return dump
		},
	}
}

// eachRotDatabase is eachRepository with rows that can be spoilt.
func eachRotDatabase(t *testing.T, test func(t *testing.T, db rotDatabase)) {
	t.Helper()
	eachRealRotDatabase(t, test)
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, rotMemory(t))
	})
}

// eachRealRotDatabase leaves out the repository in memory.
func eachRealRotDatabase(t *testing.T, test func(t *testing.T, db rotDatabase)) {
	t.Helper()
	t.Parallel()
	for name, open := range map[string]func(*testing.T) rotDatabase{"SQLite": rotSQLite, "PostgreSQL": rotPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// mendedByPause are the columns that a pause writes: what was broken there no
// longer is.
func mendedByPause(columns rotten) bool {
	for column := range columns {
		if column != "paused" && column != "cron_id" && column != "updated_at" {
			return false
		}
	}
	return true
}

// heldBack spoils rows, one of each of the kinds, and checks what becomes of
// them beside the good ones that db holds. In the end they are deleted.
func heldBack(t *testing.T, db rotDatabase, kinds []string, good int) {
	t.Helper()
	stopped := create(t, db, &smallben.Config{Logger: quiet})
	rottenIDs := make(map[int64]string)
	mended := 0
	for i, kind := range kinds {
		id := 500 + 1000*int64(i)
		rottenIDs[id] = kind
		require.NoError(t, stopped.AddJobs([]smallben.Job{job(id, "@daily", valueJob{Text: "to rot"})}))
		db.spoil(t, id, db.kinds[kind])
		if mendedByPause(db.kinds[kind]) {
			mended++
		}
	}
	whole, kept := db.dump(t, false), db.dump(t, true)

	var lines logLines
	s := create(t, db, &smallben.Config{Logger: lines.Logger()})
	require.NoError(t, s.Start(), "a row that does not decode never stops Start")
	defer func() { s.Stop() }()
	assert.Equal(t, whole, db.dump(t, false), "Start leaves the rows as they are, and needs to write no other")
	logged := lines.With("row held back")
	require.Len(t, logged, len(kinds))
	for _, line := range logged {
		assert.Contains(t, line, `"error"=`, "at error level")
		assert.Less(t, len(line), 1000, "the payload does not stand in the log")
	}
	check := func(undecodable int) {
		t.Helper()
		checkInvariant(t, s, db)
		values := gauges(t, s)
		assert.EqualValues(t, undecodable, values["smallben_scheduler_jobs_undecodable"])
		assert.EqualValues(t, good, values["smallben_scheduler_jobs_not_paused"])
	}
	refused := func(err error, why string, ids ...int64) {
		t.Helper()
		require.ErrorIs(t, err, smallben.ErrUndecodable, why)
		var jobError *smallben.JobError
		require.ErrorAs(t, err, &jobError, why)
		assert.Contains(t, rottenIDs, jobError.JobID, why)
		for _, id := range ids {
			assert.ErrorContains(t, err, fmt.Sprintf("job %d: ", id), why)
		}
	}
	all := slices.Sorted(maps.Keys(rottenIDs))
	check(len(kinds))

	jobs, err := s.ListJobs(nil)
	refused(err, "list", all...)
	assert.Len(t, jobs, good, "the others come back")
	refused(s.ResumeJobs(&smallben.PauseResumeOptions{}), "resume all", all...)
	decoded, err := db.GetAllJobsToExecute()
	refused(err, "the repository's own reading", all...)
	assert.Len(t, decoded, good)
	for id, kind := range rottenIDs {
		assert.Len(t, lines.With(fmt.Sprintf(`"job"=%d`, id)), 1, kind)
		refused(s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}), "resume "+kind, id)
		updates := []smallben.UpdateOption{{JobID: id, CronExpression: ptr("@weekly"), JobOtherInputs: &map[string]any{}}}
		if good > 0 {
			updates = append(updates, smallben.UpdateOption{JobID: 1, CronExpression: ptr("@weekly")})
		}
		refused(s.UpdateJobs(updates), "update "+kind, id)
		assert.ErrorIs(t, s.AddJobs([]smallben.Job{job(id, "@daily", idle())}), smallben.ErrJobExists)
		_, err := db.GetJob(id)
		refused(err, "get "+kind, id)
	}
	assert.Equal(t, whole, db.dump(t, false), "a refusal changes nothing")
	check(len(kinds))

	require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: all}))
	assert.Equal(t, kept, db.dump(t, true), "a pause pauses and leaves the rest")
	check(len(kinds) - mended)
	if mended < len(kinds) {
		refused(s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: all}), "resume once paused")
	}
	s.Stop()
	require.NoError(t, s.Start())
	assert.Len(t, lines.With("row held back"), 2*len(kinds)-mended, "paused rows are held back as well")
	check(len(kinds) - mended)

	for _, id := range all {
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id}}}))
	}
	check(0)
	jobs, err = s.ListJobs(nil)
	require.NoError(t, err)
	assert.Len(t, jobs, good)
}

func TestARowThatDoesNotDecodeIsHeldBack(t *testing.T) {
	eachRotDatabase(t, func(t *testing.T, db rotDatabase) {
		for _, kind := range slices.Sorted(maps.Keys(db.kinds)) {
			t.Run(kind, func(t *testing.T) { heldBack(t, db, []string{kind}, 0) })
		}
	})
}

func TestRowsOfEveryRottenKindAreHeldBackAmongAThousandThatRun(t *testing.T) {
	eachRotDatabase(t, func(t *testing.T, db rotDatabase) {
		var mu sync.Mutex
		ran := make(map[int64]bool)
		all := make(chan struct{})
		p := newProbe(func(_ *probe, input smallben.CronJobInput) {
			mu.Lock()
			defer mu.Unlock()
			if ran[input.JobID] = true; len(ran) == 1000 {
				select {
				case <-all:
				default:
					close(all)
				}
			}
		})
		var jobs []smallben.Job
		for id := int64(1); id <= 1001; id++ {
			if id != 500 {
				jobs = append(jobs, job(id, "@daily", p))
			}
		}
		s := create(t, db, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs(jobs))
		s.Stop()
		kinds := slices.Sorted(maps.Keys(db.kinds))
		heldBack(t, db, kinds, 1000)

		updates := make([]smallben.UpdateOption, len(jobs))
		for i := range jobs {
			updates[i] = smallben.UpdateOption{JobID: jobs[i].ID, CronExpression: ptr("* * * * * *")}
		}
		require.NoError(t, s.UpdateJobs(updates))
		for i, kind := range kinds {
			id := 10_000 + int64(i)
			require.NoError(t, s.AddJobs([]smallben.Job{job(id, "@every 1s", p)}))
			db.spoil(t, id, db.kinds[kind])
		}
		require.NoError(t, s.Start())
		<-all
		mu.Lock()
		assert.Len(t, ran, 1000, "none of the rotten ones")
		mu.Unlock()
		// Everything at once takes them along.
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
		checkInvariant(t, s, db)
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		assert.Empty(t, db.dump(t, false))
	})
}

func TestAPayloadOf100MBIsHeldBack(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) rotDatabase{"SQLite": rotSQLite, "PostgreSQL": rotPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			s := create(t, db, &smallben.Config{Logger: quiet})
			jobs := make([]smallben.Job, 1001)
			for i := range jobs {
				jobs[i] = job(int64(i+1), "@daily", idle())
			}
			require.NoError(t, s.AddJobs(jobs))
			db.spoil(t, 500, rotten{"serialized_job": strings.Repeat("A", 100<<20)})
			require.NoError(t, s.Start())
			assert.Len(t, insides.Entries(s), 1000)
			assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
			require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{500}}}))
			checkInvariant(t, s, db)
			s.Stop()
		})
	}
}

// Who calls ToJobWithSchedule, as a repository of other people's may, calls GobDecode.
func TestARowWhoseDecodingEndsItsGoroutineIsHeldBack(t *testing.T) {
	eachRealRotDatabase(t, func(t *testing.T, db rotDatabase) {
		for _, good := range []int{0, 1000} {
			s := create(t, db, &smallben.Config{Logger: quiet})
			jobs := make([]smallben.Job, good+3)
			for i := range jobs {
				jobs[i] = job(int64(i+1), "@daily", idle())
			}
			require.NoError(t, s.AddJobs(jobs))
			for _, id := range []int64{1, 2, int64(len(jobs))} {
				db.spoil(t, id, rottenJob(gobOf(rotDecodeLeaves{})))
			}
			require.NoError(t, s.Start())
			assert.Len(t, insides.Entries(s), good)
			assert.EqualValues(t, 3, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
			listed, err := s.ListJobs(nil)
			assert.ErrorIs(t, err, smallben.ErrUndecodable)
			assert.ErrorContains(t, err, "job 2: ")
			assert.Len(t, listed, good)
			assert.ErrorIs(t, s.ResumeJobs(&smallben.PauseResumeOptions{}), smallben.ErrUndecodable)
			require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
			s.Stop()
		}
	})
}

// SQLite takes anything for an id. What has none that can be read cannot be
// named: it is held back, and no change is about it.
func TestARowWithoutAReadableIDIsLeftAlone(t *testing.T) {
	t.Parallel()
	db := rotSQLite(t)
	s := started(t, db, smallben.SchedulerConfig{})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle()), job(3, "@daily", idle())}))
	s.Stop()
	db.spoil(t, 1, rotten{"id": "one"})
	require.NoError(t, s.Start())
	held := func() {
		t.Helper()
		checkInvariant(t, s, db)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
		_, err := s.ListJobs(nil)
		assert.ErrorIs(t, err, smallben.ErrUndecodable)
		assert.ErrorContains(t, err, `column id holds the text "one"`)
	}
	held()
	all := &smallben.PauseResumeOptions{}
	require.NoError(t, s.PauseJobs(all))
	held()
	require.NoError(t, s.ResumeJobs(all))
	held()
	require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
	held()
	for _, err := range []error{s.PauseJobs(all), s.ResumeJobs(all), s.DeleteJobs(&smallben.DeleteOptions{}),
		s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{0}}})} {
		assert.ErrorIs(t, err, s.ErrorTypeIfMismatchCount(), "nothing is left that has a name")
	}
	held()
}

// gob itself gives a struct that gained or lost fields what the two have in
// common.
func TestAJobWhoseStructGainedOrLostFieldsStillDecodes(t *testing.T) {
	eachRotDatabase(t, func(t *testing.T, db rotDatabase) {
		stopped := create(t, db, &smallben.Config{Logger: quiet})
		require.NoError(t, stopped.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		db.spoil(t, 1, rottenJob(renamedGob("rot.v2")))
		db.spoil(t, 2, rottenJob(renamedGob("rot.v3")))
		s := started(t, db, smallben.SchedulerConfig{})
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, versionMore{Text: "text", N: 7}, jobs[0].Job)
		assert.Equal(t, versionLess{Text: "text"}, jobs[1].Job)
	})
}

func TestARowThatWasMendedRunsAfterARestart(t *testing.T) {
	eachRotDatabase(t, func(t *testing.T, db rotDatabase) {
		good := base64.StdEncoding.EncodeToString(gobOf(versionOne{}))
		s := create(t, db, &smallben.Config{Logger: quiet})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", versionOne{}), job(2, "@daily", versionOne{})}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		for id := range int64(2) {
			db.spoil(t, id+1, rotten{"serialized_job": "rotten"})
		}
		require.NoError(t, s.Start())
		checkInvariant(t, s, db)
		assert.EqualValues(t, 2, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
		for id := range int64(2) {
			db.spoil(t, id+1, rotten{"serialized_job": good})
		}
		// A resume reads the rows again, and needs no restart.
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		s.Stop()
		require.NoError(t, s.Start())
		checkInvariant(t, s, db)
		assert.Len(t, insides.Entries(s), 2)
		s.Stop()
	})
}

// A type is registered for the life of a process, so each start of the service
// is a process of its own: this binary, with the name of a test below.

const (
	envRotDatabase = "SMALLBEN_TEST_ROT_DATABASE"
	envRotStage    = "SMALLBEN_TEST_ROT_STAGE"
)

type latecomer struct{ Key string }

var latecomerRan = make(chan string, 100)

func (l latecomer) Run(smallben.CronJobInput) {
	select {
	case latecomerRan <- l.Key:
	default:
	}
}

func TestARowRunsAfterARestartThatRegistersItsType(t *testing.T) {
	t.Parallel()
	for name, dsn := range map[string]func(*testing.T) string{
		"SQLite":     func(t *testing.T) string { return filepath.Join(t.TempDir(), "jobs.db") },
		"PostgreSQL": func(t *testing.T) string { return pgtest.DSN(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dsn(t)
			for _, stage := range []string{"add", "hold back", "run"} {
				service := exec.Command(os.Args[0], "-test.run=^TestTheServiceOfALatecomer$", "-test.count=1")
				service.Env = append(os.Environ(), envRotDatabase+"="+dsn, envRotStage+"="+stage, "GORACE=atexit_sleep_ms=0")
				output, err := service.CombinedOutput()
				require.NoError(t, err, "%s: %s", stage, output)
				require.Contains(t, string(output), "PASS")
			}
		})
	}
}

func TestTheServiceOfALatecomer(t *testing.T) {
	dsn, stage := os.Getenv(envRotDatabase), os.Getenv(envRotStage)
	if stage == "" {
		t.Skip("TestARowRunsAfterARestartThatRegistersItsType starts it")
	}
	dialector := sqlite.Open(dsn)
	if strings.HasPrefix(dsn, "postgres") {
		dialector = postgres.Open(dsn)
	}
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector})
	require.NoError(t, err)
	defer repository.Close()
	if stage != "hold back" {
		gob.Register(latecomer{})
	}
	s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
	defer s.Stop()
	if stage == "add" {
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", latecomer{"late"}), job(2, "* * * * * *", idle())}))
		return
	}
	require.NoError(t, s.Start())
	checkInvariant(t, s, repository)
	jobs, err := s.ListJobs(nil)
	if stage == "hold back" {
		require.ErrorIs(t, err, smallben.ErrUndecodable)
		assert.ErrorContains(t, err, "latecomer")
		assert.Equal(t, []int64{2}, ids(jobs))
		return
	}
	require.NoError(t, err)
	assert.Equal(t, []int64{1, 2}, ids(jobs))
	assert.Equal(t, "late", <-latecomerRan)
}
