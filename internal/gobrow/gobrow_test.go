package gobrow

import (
	"bytes"
	"encoding/gob"
	"math/rand"
	"reflect"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fresh is the answer that Decode is measured against.
func fresh(row []byte) (v job, err error) {
	defer recoverTo(&err)
	r := bytes.NewReader(row)
	if err = gob.NewDecoder(r).Decode(&v); err != nil {
		return nil, err
	}
	if r.Len() > 0 {
		return nil, errTrailing
	}
	if v == nil {
		return nil, errNil
	}
	return v, nil
}

func TestDecodeReturnsWhatAFreshDecoderReturns(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewSource(1))
	var d Decoder[job]
	for range 100 {
		for _, sample := range samples {
			v := sample(r)
			row, err := Encode(v)
			require.NoError(t, err, "%T", v)
			want, err := fresh(row)
			require.NoError(t, err, "%T", v)
			for range 2 {
				got, err := d.Decode(row)
				require.NoError(t, err, "%T %x", v, row)
				require.Equal(t, want, got)
			}
		}
	}
}

func TestConcurrentDecodesShareNothing(t *testing.T) {
	t.Parallel()
	var d Decoder[job]
	var wg sync.WaitGroup
	for seed := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(seed)))
			for range 10 {
				for _, sample := range samples {
					v := sample(r)
					row, err := Encode(v)
					if !assert.NoError(t, err) {
						return
					}
					want, err := fresh(row)
					assert.NoError(t, err)
					got, err := d.Decode(row)
					assert.NoError(t, err)
					assert.Equal(t, want, got)
				}
			}
		})
	}
	wg.Wait()
}

var benchJob = &nested{A: inner{"a", "b"}, Left: []inner{{"c", "d"}}}

func BenchmarkEncode(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_, _ = Encode[job](benchJob)
	}
}

func benchmarkDecode(b *testing.B, decode func(row []byte) (job, error)) {
	for _, v := range []job{reminder{"hello", 3}, benchJob, &dynamic{V: 1, Jobs: []job{reminder{"x", 1}}}} {
		b.Run(reflect.TypeOf(v).String(), func(b *testing.B) {
			row, err := Encode(v)
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decode(row); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	var d Decoder[job]
	benchmarkDecode(b, d.Decode)
}

func BenchmarkDecodeWithoutCache(b *testing.B) {
	benchmarkDecode(b, func(row []byte) (job, error) { return new(Decoder[job]).Decode(row) })
}

func BenchmarkGobAlone(b *testing.B) { benchmarkDecode(b, fresh) }

func BenchmarkCyclicCheck(b *testing.B) {
	for _, v := range []job{benchJob, &recursive{1, &recursive{2, &recursive{3, nil}}}} {
		b.Run(reflect.TypeOf(v).String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				rv := reflect.ValueOf(v)
				if factsOf(rv.Type()).mayRecur {
					check(rv)
				}
			}
		})
	}
}
