package routes_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

func records(list ...routes.Record) iter.Seq2[routes.Record, error] {
	return func(yield func(routes.Record, error) bool) {
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func aggregate(t *testing.T, m *transformer.Model, opts routes.AggregateOptions) *routes.AggregateResult {
	t.Helper()
	r, err := routes.Aggregate(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAggregateIsTheReference: importance and activity of heads and FFNs, and the roles of heads, equal the reference
// for each prompt.
func TestAggregateIsTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			r := openReference(t, name)
			m := open(t, be, r.dir)
			for _, p := range r.prompts() {
				one := records(routes.Record{IDs: r.ids(p + ".ids")})
				for _, mode := range []routes.Mode{routes.Filter, routes.Renormalise} {
					for _, tau := range []float64{0.04, 0.1, 0.3} {
						got := aggregate(t, m, routes.AggregateOptions{Records: one, Threshold: threshold(mode, tau), NoRoles: true})
						prefix := fmt.Sprintf("%s.%s.%g.", p, mode, tau)
						var importance, active, ffns []float64
						for _, h := range got.Heads {
							importance, active = append(importance, h.Importance), append(active, h.Frequency)
						}
						for _, f := range got.FFNs {
							ffns = append(ffns, f.Importance)
						}
						near(t, prefix+"head_importance", importance, r.floats(prefix+"head_importance"), 1e-5)
						near(t, prefix+"head_active", active, r.floats(prefix+"head_active"), 0)
						near(t, prefix+"ffn_importance", ffns, r.floats(prefix+"ffn_importance"), 1e-5)
					}
				}
				got := aggregate(t, m, routes.AggregateOptions{Records: one})
				var offsets, sink []float64
				for _, h := range got.Heads {
					if h.Role == nil { // nothing comes along the head
						nan := math.NaN()
						h.Role = &routes.HeadRole{Offsets: [3]float64{nan, nan, nan}, Sink: nan}
					}
					offsets, sink = append(offsets, h.Role.Offsets[:]...), append(sink, h.Role.Sink)
				}
				nearOrUndefined(t, p+".role.offset", offsets, r.floats(p+".role.offset"))
				nearOrUndefined(t, p+".role.sink", sink, r.floats(p+".role.sink"))
			}
		}
	})
}

// nearOrUndefined also takes a number that is not defined for one.
func nearOrUndefined(t *testing.T, what string, got, want []float64) {
	t.Helper()
	for i := range want {
		if math.IsNaN(want[i]) && math.IsNaN(got[i]) {
			got[i], want[i] = 0, 0
		}
	}
	nearShares(t, what, got, want)
}

// dataset are prompts of two labels.
func dataset() []routes.Record {
	var out []routes.Record
	for i := range 12 {
		r := routes.Record{IDs: []int{1, 403, 407, 261 + i}, Label: "a"}
		if i%3 == 0 {
			r = routes.Record{IDs: []int{1, 300 + i, 301, 302, 317, 280 + i}, Label: "b"}
		}
		out = append(out, r)
	}
	return out
}

// TestAggregateCountsGraphs: means, deviations and frequencies are those of the graphs of all predictions, by label too,
// and specialisation and z are what their formulas make of the frequencies.
func TestAggregateCountsGraphs(t *testing.T) {
	backendtest.Long(t)
	m := open(t, backendtest.Open(t, "go"), "stories")
	const tau = 0.1
	got := aggregate(t, m, routes.AggregateOptions{
		Records: records(dataset()...), Everywhere: true, Threshold: threshold(routes.Filter, tau), Batch: 5,
		Words: func(ids []int) []int { return routes.Words(m.Tokenizer, ids) },
	})
	sums := map[string][]float64{} // by label
	for _, r := range dataset() {
		p := openParts(t, m, routes.PartsOptions{IDs: r.IDs})
		for i := 1; i < len(r.IDs); i++ {
			sum := 0.0
			for _, e := range graphOf(t, p, threshold(routes.Filter, tau), routes.Node{Kind: routes.BlockNode, Layer: 4, Position: i}).Edges {
				if e.Kind == routes.Attn && e.Layer == 0 && e.Head == 2 {
					sum += e.Weight
				}
			}
			sums[r.Label] = append(sums[r.Label], sum)
		}
	}
	all := slices.Concat(sums["a"], sums["b"])
	mean, square, active := 0.0, 0.0, map[string]float64{}
	for label, list := range sums {
		for _, v := range list {
			mean += v / float64(len(all))
			square += v * v / float64(len(all))
			if v > 0 {
				active[label]++
			}
		}
	}
	fa, fb := active["a"]/float64(len(sums["a"])), active["b"]/float64(len(sums["b"]))
	p := (active["a"] + active["b"]) / float64(len(all))
	z := (fa - fb) / math.Sqrt(p*(1-p)*(1/float64(len(sums["a"]))+1/float64(len(sums["b"]))))
	h := got.Heads[2]
	near(t, "head", []float64{h.Importance, h.Deviation, h.Frequency}, []float64{mean, math.Sqrt(square - mean*mean), p}, 1e-6)
	if got.Predictions != len(all) || got.Records != 12 || len(got.Domains) != 2 || h.Head != "L0H2" {
		t.Fatalf("%d predictions of %d records in %d domains, %s", got.Predictions, got.Records, len(got.Domains), h.Head)
	}
	b, a := got.Domains[0].Heads[2], got.Domains[1].Heads[2]
	if b.Z == nil || a.Z == nil {
		t.Fatalf("frequencies of %g and %g do not tell", fa, fb)
	}
	near(t, "domain", []float64{a.Frequency, b.Frequency, a.Specialisation, b.Specialisation, *a.Z, *b.Z}, []float64{fa, fb, fa - fb, fb - fa, z, -z}, 1e-6)
	for _, d := range got.Domains {
		for _, h := range d.Heads {
			if h.Low > h.Specialisation+1e-9 || h.High < h.Specialisation-1e-9 {
				t.Errorf("%s of %s: %g is outside %g to %g", h.Head, d.Label, h.Specialisation, h.Low, h.High)
			}
		}
	}
	if *got.Similarity[0][0] < 1-1e-9 || math.Abs(*got.Similarity[0][1]-*got.Similarity[1][0]) > 1e-12 {
		t.Errorf("similarity %v", got.Similarity)
	}
}

// TestAggregateUnderInterventions: each prompt is decomposed as it is under the interventions, and takes resampled values
// from a reference row of its own.
func TestAggregateUnderInterventions(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	iv := under(t, m, "scale L0H2=0.5 @all", "ablate L1N3,L2H1 @all", "resample L1H0 @1")
	cut := threshold(routes.Filter, 0.1)
	got := aggregate(t, m, routes.AggregateOptions{Records: records(dataset()...), Threshold: cut, Batch: 5, Interventions: iv})
	plain := aggregate(t, m, routes.AggregateOptions{Records: records(dataset()...), Threshold: cut, Batch: 5})
	want := make([]float64, len(got.Heads))
	for i, r := range dataset() {
		own := iv
		own.Reference = [][]int{iv.Reference[i%2], iv.Reference[(i+1)%2]}
		p := openParts(t, m, routes.PartsOptions{IDs: r.IDs, Interventions: own})
		for _, e := range graphOf(t, p, cut, routes.Node{Kind: routes.BlockNode, Layer: 4, Position: len(r.IDs) - 1}).Edges {
			if e.Kind == routes.Attn {
				want[e.Layer*m.Config.Attention.Heads+e.Head] += e.Weight / float64(len(dataset()))
			}
		}
	}
	changed := 0.0
	for i, h := range got.Heads {
		near(t, h.Head, []float64{h.Importance}, want[i:i+1], 1e-6)
		changed += math.Abs(h.Importance - plain.Heads[i].Importance)
	}
	if changed < 0.01 {
		t.Errorf("interventions change the importances of heads by %g", changed)
	}
}

// TestAggregateGoesOn: a job that is interrupted and started again gives what an uninterrupted one gives, byte for byte,
// without running the first records again; other data or options do not take its file.
func TestAggregateGoesOn(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := routes.AggregateOptions{Records: records(dataset()...), ByPosition: true, Everywhere: true, Batch: 3}
	whole := aggregate(t, m, opts)
	opts.Part = filepath.Join(t.TempDir(), "a.part")
	broken := errors.New("the disk is gone")
	opts.Records = func(yield func(routes.Record, error) bool) {
		for r := range records(dataset()[:7]...) {
			if !yield(r, nil) {
				return
			}
		}
		yield(routes.Record{}, broken)
	}
	if _, err := routes.Aggregate(t.Context(), m, opts); !errors.Is(err, broken) {
		t.Fatalf("interrupted: %v", err)
	}
	other := opts
	other.Data = "other"
	if _, err := routes.Aggregate(t.Context(), m, other); !errors.Is(err, routes.ErrPart) {
		t.Errorf("other data: %v", err)
	}
	list := dataset()
	for i := range 6 { // what is done is not run again
		list[i] = routes.Record{}
	}
	opts.Records = records(list...)
	again := aggregate(t, m, opts)
	a, errA := json.Marshal(whole)
	b, errB := json.Marshal(again)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Errorf("gone on with %s, in one go %s", b, a)
	}
	if _, err := os.Stat(opts.Part); !os.IsNotExist(err) {
		t.Errorf("the file of a finished job: %v", err)
	}
	if _, err := routes.Aggregate(t.Context(), m, routes.AggregateOptions{Records: records()}); !errors.Is(err, routes.ErrAggregate) {
		t.Errorf("no records: %v", err)
	}
}

// TestWords: pieces of a word are told by blanks, whichever side of a token they stand on.
func TestWords(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	tokens, err := m.Tokenizer.Encode("Once unbelievable, there", true)
	if err != nil {
		t.Fatal(err)
	}
	var ids, want []int
	text := ""
	for _, x := range tokens {
		ids = append(ids, x.ID)
	}
	word := -1
	for i, id := range ids {
		piece := string(m.Tokenizer.Bytes(id))
		if i <= 1 || piece[0] == ' ' { // the first is <s>
			word++
		}
		want, text = append(want, word), text+piece
	}
	if got := routes.Words(m.Tokenizer, ids); !slices.Equal(got, want) || want[len(want)-1] != 3 || len(ids) < 7 {
		t.Errorf("%q is %v, want %v", text, got, want)
	}
}
