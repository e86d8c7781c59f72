package gobrow

import (
	"encoding/base64"
	"encoding/gob"
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// reminder is the job of the rows that v0.10 stored in testdata.
type reminder struct {
	Text  string
	Tries int
}

func (reminder) Run() {}

func init() { gob.RegisterName("compat.Reminder", reminder{}) }

func TestRowsOfTheOriginalDecode(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"v0_10_sqlite.sql", "v0_10_postgres.sql"} {
		dump, err := os.ReadFile("../../testdata/" + file)
		require.NoError(t, err)
		var d Decoder[job]
		texts := map[string]bool{}
		for _, b64 := range regexp.MustCompile(`OhAAD2Nvb[A-Za-z0-9+/]*=*`).FindAllString(string(dump), -1) {
			row, err := base64.StdEncoding.DecodeString(b64)
			require.NoError(t, err)
			v, err := d.Decode(row)
			require.NoError(t, err)
			texts[v.(reminder).Text] = true
		}
		require.Contains(t, texts, "rome")
		require.Contains(t, texts, "hourly")
	}
}

// kept are the plans that a decoder keeps.
func kept(d *Decoder[job]) map[string]plan {
	plans, _ := d.plans.Load().(map[string]plan)
	return plans
}

// knows reports whether a decoder keeps a plan for a row.
func knows(d *Decoder[job], row []byte) bool {
	h := newReader(row).head(false)
	p, known := kept(d)[string(h.definitions)]
	return known && p.id == h.id
}

func TestDecodeCompilesDefinitionsOnce(t *testing.T) {
	var d Decoder[job]
	row, err := Encode[job](reminder{"hello", 3})
	require.NoError(t, err)
	_, err = d.Decode(row)
	require.NoError(t, err)
	require.Len(t, kept(&d), 1)
	require.True(t, knows(&d, row))
	other, err := Encode[job](reminder{"", 0})
	require.NoError(t, err)
	fewest := math.Inf(1) // a decoder may be lost now and then
	for range 20 {
		fewest = min(fewest, testing.AllocsPerRun(1, func() {
			v, err := d.Decode(other)
			require.NoError(t, err)
			require.Equal(t, reminder{}, v)
		}))
	}
	require.LessOrEqual(t, fewest, 8.0)
}

func TestDecodeKeepsNoDefinitionsOfInterfacesOrRefusedRows(t *testing.T) {
	t.Parallel()
	var d Decoder[job]
	boxed, err := Encode[job](bound{N: 1})
	require.NoError(t, err)
	_, err = d.Decode(boxed)
	require.NoError(t, err)

	row, err := Encode[job](reminder{"hello", 3})
	require.NoError(t, err)
	_, err = d.Decode(append(row, 0))
	require.ErrorIs(t, err, errTrailing)
	require.Nil(t, kept(&d))
}

func TestRowsOfProcessesThatNumberTypesOtherwiseDecodeAsFast(t *testing.T) {
	var d Decoder[job]
	for id := int64(t1); id < t1+3; id++ {
		row := rowOf(survivor{}, defs(structDef(id, "Last", 6)), id, uints(1), str("last"), uints(0))
		for range 2 {
			v, err := d.Decode(row)
			require.NoError(t, err)
			require.Equal(t, survivor{Last: "last"}, v)
		}
		require.True(t, knows(&d, row))
	}
	require.Len(t, kept(&d), 3)
}

func TestTheCacheIsBounded(t *testing.T) {
	t.Parallel()
	// The same type as it is written by one version after the other.
	version := func(n, length int) []byte {
		field := fmt.Sprintf("F%d", n) + strings.Repeat("x", length)
		return rowOf(survivor{}, defs(structDef(t1, field, 6, "Last", 6)), t1, uints(2), str("last"), uints(0))
	}
	var d Decoder[job]
	decode := func(row []byte) {
		for range 2 {
			v, err := d.Decode(row)
			require.NoError(t, err)
			require.Equal(t, survivor{Last: "last"}, v)
		}
	}
	for n := range 2 * maxPlans {
		decode(version(n, 0))
		require.LessOrEqual(t, len(kept(&d)), maxPlans)
	}
	require.Len(t, kept(&d), maxPlans)
	d = Decoder[job]{}
	decode(version(0, maxPlanBytes)) // too long to be kept
	require.Nil(t, kept(&d))
}

func TestARowDecodesOnceItsTypeIsRegistered(t *testing.T) {
	t.Parallel()
	row, err := Encode[job](reminder{"hello", 3})
	require.NoError(t, err)
	row = rename(row, "gobrow.registered-late")
	var d Decoder[job]
	_, err = d.Decode(row)
	require.ErrorContains(t, err, `name not registered for interface: "gobrow.registered-late"`)
	gob.RegisterName("gobrow.registered-late", lateReminder{})
	v, err := d.Decode(row)
	require.NoError(t, err)
	require.Equal(t, lateReminder{"hello"}, v)
}

type lateReminder struct{ Text string }

func (lateReminder) Run() {}

func TestTwoNamesWithTheSameDefinitionsStayApart(t *testing.T) {
	t.Parallel()
	var d Decoder[job]
	row, err := Encode[job](reminder{"hello", 3})
	require.NoError(t, err)
	renamed := rename(row, nameOf(private{}))
	for range 3 {
		v, err := d.Decode(row)
		require.NoError(t, err)
		require.Equal(t, reminder{"hello", 3}, v)
		_, err = d.Decode(renamed)
		require.Error(t, err)
	}
}

func TestAPanickingJobIsAnErrorAndTheNextRowDecodes(t *testing.T) {
	t.Parallel()
	var d Decoder[job]
	for range 3 {
		for _, says := range []string{"panic now", "error now"} {
			row, err := Encode[job](&secret{says})
			require.NoError(t, err)
			_, err = d.Decode(row)
			require.ErrorContains(t, err, says)
		}
		row, err := Encode[job](&secret{"fine"})
		require.NoError(t, err)
		v, err := d.Decode(row)
		require.NoError(t, err)
		require.Equal(t, &secret{"fine"}, v)
	}
}

// keeper keeps the bytes that gob lends it.
type keeper struct{ kept []byte }

func (*keeper) Run()                         {}
func (k *keeper) GobEncode() ([]byte, error) { return k.kept, nil }
func (k *keeper) GobDecode(b []byte) error   { k.kept = b; return nil }

// opener decodes another row while its own is being decoded.
type opener struct{ inside job }

func (*opener) Run()                         {}
func (o *opener) GobEncode() ([]byte, error) { return Encode(o.inside) }
func (o *opener) GobDecode(b []byte) (err error) {
	o.inside, err = openers.Decode(b)
	return err
}

var openers Decoder[job]

func init() {
	gob.Register(&keeper{})
	gob.Register(&opener{})
}

func TestDecodedValuesShareNoMemory(t *testing.T) {
	t.Parallel()
	var d Decoder[job]
	var values []job
	for i := range 5 {
		row, err := Encode[job](&keeper{[]byte{byte(i)}})
		require.NoError(t, err)
		v, err := d.Decode(row)
		require.NoError(t, err)
		clear(row)
		values = append(values, v)
	}
	for i, v := range values {
		require.Equal(t, &keeper{[]byte{byte(i)}}, v)
	}
}

func TestAJobMayDecodeOthersWhileItIsDecoded(t *testing.T) {
	t.Parallel()
	v := &opener{&opener{&opener{reminder{"inside", 1}}}}
	row, err := Encode[job](v)
	require.NoError(t, err)
	for range 3 {
		got, err := openers.Decode(row)
		require.NoError(t, err)
		require.Equal(t, v, got)
	}
}

func TestWhatTakesTooMuchMemoryDoesNotComeBack(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("encodes four million empty strings")
	}
	var d Decoder[job]
	for n, want := range map[int]error{maxMemory/1024 + 1: errMemory, 1000: nil} {
		// 17 bytes stand for a struct of 1 KiB.
		row, err := Encode[job](sparse{make([]roomy, n)})
		require.NoError(t, err)
		_, err = d.Decode(row)
		require.ErrorIs(t, err, want)
	}
}

func TestARowCountsTheSameMemoryWithAPlan(t *testing.T) {
	t.Parallel()
	var fields []any
	for n := range 200 { // which count more than is left beside the value
		fields = append(fields, fmt.Sprint("Gone", n), 2)
	}
	row := func(elements int) []byte { // of 128 KiB each
		return rowOf(wide{}, defs(structDef(t1, append(fields, "L", t2)...), sliceDef(t2, t3), structDef(t3)), t1,
			uints(201, uint64(elements)), make([]byte, elements), uints(0))
	}
	most := maxMemory / int(reflect.TypeFor[struct{ Page [1 << 14]int }]().Size())
	var planned Decoder[job]
	_, err := planned.Decode(row(1))
	require.NoError(t, err)
	_, err = planned.Decode(row(most - 1))
	require.ErrorIs(t, err, errMemory)
	_, err = new(Decoder[job]).Decode(row(most - 1))
	require.ErrorIs(t, err, errMemory)
}

type (
	sparse   struct{ L []roomy }
	roomy    struct{ A, B, C, D, E, F, G, H strings8 }
	strings8 struct{ A, B, C, D, E, F, G, H string }
)

func (sparse) Run() {}

func init() { gob.Register(sparse{}) }
