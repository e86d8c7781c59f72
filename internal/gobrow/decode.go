package gobrow

import (
	"fmt"
	"maps"
	"reflect"
	"sync/atomic"
)

// Decoder turns rows into values of interface type I. Its zero value is ready to use,
// it may be used by several goroutines at once, and it needs no end.
//
// Rows of one type may begin with different bytes, since each process numbers types in
// the order in which it meets them. A Decoder keeps what it has planned for the first
// 256 sets of definitions that it meets, of 8 KiB at most each.
type Decoder[I any] struct {
	plans atomic.Value // map[string]plan by definitions; replaced as a whole
}

// plan is what rows with the same definitions have in common.
type plan struct {
	id     int32 // the wire type of the value
	local  reflect.Type
	root   *node
	memory int // what it counts of a row's
}

// Decode returns the value of a row: what a new gob.Decoder would return, and
// an error where that would return one, or panic, or take time or memory out of
// proportion. It is also an error for a row to hold nil or bytes after the value.
func (d *Decoder[I]) Decode(row []byte) (value I, err error) {
	defer recoverTo(&err)
	r := newReader(row)
	h := r.head(false)
	plans, _ := d.plans.Load().(map[string]plan)
	p, known := plans[string(h.definitions)]
	known = known && p.id == h.id
	if known {
		r.spend(1, p.memory) // so that a row that is read here is read elsewhere
	} else {
		r = newReader(row)
		h = r.head(true)
		p = plan{id: h.id, local: r.registered(string(h.name), h.id)}
		p.root = r.planConcrete(p.id, p.local)
		p.memory = maxMemory - r.memory
	}
	v := r.concrete(p.root, p.local, 0)
	if r.pos != len(row) {
		fail(errTrailing)
	}
	value, ok := v.Interface().(I)
	if !ok {
		fail(fmt.Errorf("%w: a %s is no %s", errMismatch, p.local, reflect.TypeFor[I]()))
	}
	hasRoom := len(plans) < maxPlans && len(h.definitions) <= maxPlanBytes
	if !known && !r.dynamic && h.definitions != nil && hasRoom {
		with := map[string]plan{string(h.definitions): p}
		maps.Copy(with, plans)
		d.plans.Store(with) // a plan that is kept meanwhile is lost, and made again
	}
	return value, nil
}

// RegisteredName returns the name that the type of a row's value is registered
// under, and "" if the row does not begin as Encode's do.
func RegisteredName(row []byte) (name string) {
	var err error
	defer recoverTo(&err)
	return string(newReader(row).head(false).name)
}
