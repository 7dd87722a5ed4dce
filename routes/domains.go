package routes

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/engram-go/engram/internal/stats"
	"github.com/engram-go/engram/transformer"
)

// DomainUse is how often heads and FFNs take part in the predictions of one label.
type DomainUse struct {
	Label string          `json:"label"`
	N     int             `json:"n"` // predictions
	Heads []DomainHeadUse `json:"heads"`
	FFNs  []PartUse       `json:"ffns"`
}

// DomainHeadUse is how much more a head takes part in one label's predictions than in others'.
type DomainHeadUse struct {
	Head       string  `json:"head"`
	Importance float64 `json:"importance"`
	Frequency  float64 `json:"frequency"`
	// Specialisation is the frequency less the largest one of another label, Low and High the 2.5 and 97.5 per cent
	// points of it over bootstrap draws of the predictions.
	Specialisation float64 `json:"specialisation"`
	Low            float64 `json:"low"`
	High           float64 `json:"high"`
	// Z is (f − f_rest)/√(p(1 − p)(1/n + 1/n_rest)), p the frequency over all predictions; null where p is 0 or 1.
	Z *float64 `json:"z"`
}

// result reads the tally.
func (g *aggregation) result() *AggregateResult {
	t := g.tally
	out := &AggregateResult{Records: t.Records, Predictions: t.Predictions, Threshold: g.Threshold, Seed: g.Seed}
	whole := &labelTally{
		Heads: newUse(t.Layers * t.Heads), FFNs: newUse(t.Layers), Mid: newUse(t.Layers), Post: newUse(t.Layers),
	}
	for _, l := range t.Labels {
		whole.N += l.N
		whole.Heads.join(l.Heads)
		whole.FFNs.join(l.FFNs)
		whole.Mid.join(l.Mid)
		whole.Post.join(l.Post)
	}
	for l := range t.Layers {
		for h := range t.Heads {
			i := l*t.Heads + h
			out.Heads = append(out.Heads, HeadUse{
				Head: transformer.Head{Layer: l, Index: h}.String(), PartUse: whole.Heads.use(i, whole.N, l), Role: t.role(i),
			})
		}
		out.FFNs = append(out.FFNs, whole.FFNs.use(l, whole.N, l))
		if !g.m.Config.Layout.IsParallel() {
			out.IntoAttn = append(out.IntoAttn, whole.Mid.use(l, whole.N, l))
		}
		out.IntoBlock = append(out.IntoBlock, whole.Post.use(l, whole.N, l))
	}
	if len(t.Labels) > 1 {
		out.Bootstrap = g.Bootstrap
		out.Domains = g.domains(whole)
		out.Similarity = t.similarity()
	}
	return out
}

// domains compares the labels.
func (g *aggregation) domains(whole *labelTally) []DomainUse {
	t := g.tally
	var out []DomainUse
	for _, l := range t.Labels {
		d := DomainUse{Label: l.Label, N: l.N}
		for i := range l.FFNs.Sum {
			d.FFNs = append(d.FFNs, l.FFNs.use(i, l.N, i))
		}
		out = append(out, d)
	}
	rng := rand.New(rand.NewPCG(g.Seed, 1))
	for i := range t.Layers * t.Heads {
		frequencies := make([]float64, len(t.Labels))
		for k, l := range t.Labels {
			frequencies[k] = l.Heads.Active[i] / float64(l.N)
		}
		draws := g.draws(rng, i)
		head := transformer.Head{Layer: i / t.Heads, Index: i % t.Heads}.String()
		for k, l := range t.Labels {
			use := l.Heads.use(i, l.N, i/t.Heads)
			h := DomainHeadUse{
				Head: head, Importance: use.Importance, Frequency: use.Frequency, Specialisation: lead(frequencies, k),
				Z: zScore(l.Heads.Active[i], l.N, whole.Heads.Active[i], whole.N),
			}
			h.Low, h.High = quantile(draws[k], 0.025), quantile(draws[k], 0.975)
			out[k].Heads = append(out[k].Heads, h)
		}
	}
	return out
}

// draws are specialisations of a head in resampled predictions, by label. A label's predictions are 0 or 1 for a head,
// so that drawing n of n with replacement draws their sum from a binomial distribution.
func (g *aggregation) draws(rng *rand.Rand, head int) [][]float64 {
	labels := g.tally.Labels
	out := make([][]float64, len(labels))
	frequencies := make([]float64, len(labels))
	for range g.Bootstrap {
		for k, l := range labels {
			frequencies[k] = float64(binomial(rng, l.N, l.Heads.Active[head]/float64(l.N))) / float64(l.N)
		}
		for k := range labels {
			out[k] = append(out[k], lead(frequencies, k))
		}
	}
	for k := range out {
		slices.Sort(out[k])
	}
	return out
}

// exactDraws is the largest number of trials that are drawn one by one.
const exactDraws = 200

// binomial draws how many of n trials succeed; for many trials from the normal distribution of the same mean and
// variance.
func binomial(rng *rand.Rand, n int, p float64) int {
	if p <= 0 || p >= 1 {
		return int(math.Round(p)) * n
	}
	if n > exactDraws {
		x := float64(n)*p + rng.NormFloat64()*math.Sqrt(float64(n)*p*(1-p))
		return int(math.Round(min(max(x, 0), float64(n))))
	}
	k := 0
	for range n {
		if rng.Float64() < p {
			k++
		}
	}
	return k
}

// lead is a value less the largest of the others.
func lead(x []float64, k int) float64 {
	most := math.Inf(-1)
	for i, v := range x {
		if i != k {
			most = max(most, v)
		}
	}
	return x[k] - most
}

// quantile of sorted values; 0 of none.
func quantile(x []float64, q float64) float64 {
	if len(x) == 0 {
		return 0
	}
	return x[int(math.Round(q*float64(len(x)-1)))]
}

// zScore compares a of n successes with the rest of all of m.
func zScore(a float64, n int, all float64, m int) *float64 {
	rest := m - n
	p := all / float64(m)
	if rest == 0 || p <= 0 || p >= 1 {
		return nil
	}
	z := (a/float64(n) - (all-a)/float64(rest)) / math.Sqrt(p*(1-p)*(1/float64(n)+1/float64(rest)))
	return &z
}

// similarity is Spearman's correlation between labels of the heads' frequencies; null where one is constant.
func (t *tally) similarity() [][]*float64 {
	out := make([][]*float64, len(t.Labels))
	for i, a := range t.Labels {
		for _, b := range t.Labels {
			var cell *float64
			if r := stats.Spearman(a.Heads.Active, b.Heads.Active); !math.IsNaN(r) {
				cell = &r
			}
			out[i] = append(out[i], cell)
		}
	}
	return out
}
