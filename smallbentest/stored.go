package smallbentest

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"testing"

	"github.com/go-logr/logr/funcr"

	"github.com/nbena/smallben"
)

// CheckStored reports an error for each job that does not come back from storage
// as it went: AddJobs refuses it, its type needs a gob.Register, or a field is
// lost, as gob loses unexported fields, functions and channels. The error names
// the field. Times are compared by their Equal method, and so is every type that has
// one; an empty slice or map counts as nil; inputs are compared as JSON.
//
// The jobs need an id and an expression, like those of AddJobs, of five fields or
// six. Nothing runs.
func CheckStored(t testing.TB, jobs ...smallben.Job) {
	t.Helper()
	for _, job := range jobs {
		if err := stays(job); err != nil {
			t.Errorf("job %d, a %T: %v", job.ID, job.Job, err)
		}
	}
}

// stays returns why a job is not what it was once it has been stored.
func stays(job smallben.Job) error {
	s := smallben.New(NewMemoryRepository(), &smallben.Config{
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
		Logger:          funcr.New(func(string, string) {}, funcr.Options{}),
	})
	if err := s.AddJobs([]smallben.Job{job}); err != nil {
		return err
	}
	listed, err := s.ListJobs(nil)
	if err != nil {
		return err
	}
	if where := difference(reflect.ValueOf(job.Job), reflect.ValueOf(listed[0].Job), fmt.Sprintf("%T", job.Job), make(map[visit]bool)); where != "" {
		return fmt.Errorf("%s is not stored", where)
	}
	given, err := json.Marshal(job.JobInput)
	if err != nil {
		return err
	}
	stored, err := json.Marshal(listed[0].JobInput)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(decoded(given), decoded(stored)) {
		return fmt.Errorf("the input %s comes back as %s", given, stored)
	}
	return nil
}

func decoded(encoded []byte) (value any) {
	_ = json.Unmarshal(encoded, &value) // of json.Marshal
	return value
}

// visit is a pair of pointers that difference has compared.
type visit struct{ given, stored uintptr }

// difference returns the path of the first part of given in which stored differs,
// "" if there is none.
func difference(given, stored reflect.Value, path string, seen map[visit]bool) string {
	if given.IsValid() != stored.IsValid() || given.IsValid() && given.Type() != stored.Type() {
		return path
	}
	if equal, ok := callEqual(given, stored); ok {
		if !equal {
			return path
		}
		return ""
	}
	switch given.Kind() {
	case reflect.Invalid:
		return ""
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		if !given.IsNil() || !stored.IsNil() {
			return path
		}
	case reflect.Pointer, reflect.Interface:
		if given.IsNil() || stored.IsNil() {
			if given.IsNil() != stored.IsNil() {
				return path
			}
			return ""
		}
		if given.Kind() == reflect.Pointer {
			pair := visit{given.Pointer(), stored.Pointer()}
			if seen[pair] {
				return ""
			}
			seen[pair] = true
		}
		return difference(given.Elem(), stored.Elem(), path, seen)
	case reflect.Struct:
		for i := range given.NumField() {
			if where := difference(given.Field(i), stored.Field(i), path+"."+given.Type().Field(i).Name, seen); where != "" {
				return where
			}
		}
	case reflect.Slice, reflect.Array:
		if given.Len() != stored.Len() {
			return path
		}
		for i := range given.Len() {
			if where := difference(given.Index(i), stored.Index(i), fmt.Sprintf("%s[%d]", path, i), seen); where != "" {
				return where
			}
		}
	case reflect.Map:
		if given.Len() != stored.Len() {
			return path
		}
		for _, key := range given.MapKeys() {
			if where := difference(given.MapIndex(key), stored.MapIndex(key), fmt.Sprintf("%s[%v]", path, key), seen); where != "" {
				return where
			}
		}
	case reflect.Float32, reflect.Float64:
		notANumber := math.IsNaN(given.Float()) && math.IsNaN(stored.Float())
		if given.Float() != stored.Float() && !notANumber {
			return path
		}
	default:
		if !given.Equal(stored) {
			return path
		}
	}
	return ""
}

// callEqual calls the method Equal of given, if it has one for its own type, as
// time.Time has.
func callEqual(given, stored reflect.Value) (equal, ok bool) {
	if !given.IsValid() || !given.CanInterface() || given.Kind() == reflect.Pointer || given.Kind() == reflect.Interface {
		return false, false
	}
	method := given.MethodByName("Equal")
	if !method.IsValid() || method.Type() != reflect.FuncOf([]reflect.Type{given.Type()}, []reflect.Type{reflect.TypeFor[bool]()}, false) {
		return false, false
	}
	return method.Call([]reflect.Value{stored})[0].Bool(), true
}
