package editing

import "math"

// Scores are CounterFact's metrics in percent. E is of the rewritten prompt, P of the paraphrases, N of the
// neighbourhood; S counts where the wanted target (N: the old one) is the more probable of the two, ties as failures, M
// is by how much, and Exact counts where every token of it is the most probable of all. Score is the harmonic mean of
// ES, PS and NS. Prompts are averaged within a record, then records.
type Scores struct {
	ES      float64 `json:"ES"`
	EM      float64 `json:"EM"`
	PS      float64 `json:"PS"`
	PM      float64 `json:"PM"`
	NS      float64 `json:"NS"`
	NM      float64 `json:"NM"`
	Score   float64 `json:"S"`
	ExactES float64 `json:"exact_ES"`
	ExactPS float64 `json:"exact_PS"`
	ExactNS float64 `json:"exact_NS"`
	// GE is the entropy of n-grams in texts written on from the generation prompts, and RS how like they are to reference
	// texts; nil where none were written, or no references given.
	GE *float64 `json:"GE,omitempty"`
	RS *float64 `json:"RS,omitempty"`
	// Essence is the perplexity of reference texts about the subject itself, not in percent; nil where there are none.
	Essence *float64 `json:"essence,omitempty"`
	// Interval has half the width of the 95 % interval of each, 1.96·std/√records.
	Interval map[string]float64 `json:"interval"`
	Records  int                `json:"records"`
}

// Summarise averages the scores of records. Records without paraphrases or neighbours do not count there.
func Summarise(list []CaseScores) Scores {
	s := Scores{Interval: map[string]float64{}, Records: len(list)}
	measure := func(name string, prompts func(CaseScores) []PromptScore, value func(PromptScore) float64) float64 {
		var all []float64
		for _, c := range list {
			if p := prompts(c); len(p) > 0 {
				sum := 0.0
				for _, one := range p {
					sum += 100 * value(one) / float64(len(p))
				}
				all = append(all, sum)
			}
		}
		mean, half := meanInterval(all)
		s.Interval[name] = half
		return mean
	}
	rewrite := func(c CaseScores) []PromptScore { return c.Rewrite }
	paraphrases := func(c CaseScores) []PromptScore { return c.Paraphrases }
	neighbors := func(c CaseScores) []PromptScore { return c.Neighborhood }
	wins := func(p PromptScore) float64 { return truth(p.Old > p.New) }
	margin := func(p PromptScore) float64 { return math.Exp(-p.New) - math.Exp(-p.Old) }
	exact := func(p PromptScore) float64 { return truth(p.ExactNew) }
	s.ES, s.EM = measure("ES", rewrite, wins), measure("EM", rewrite, margin)
	s.PS, s.PM = measure("PS", paraphrases, wins), measure("PM", paraphrases, margin)
	s.NS = measure("NS", neighbors, func(p PromptScore) float64 { return truth(p.Old < p.New) })
	s.NM = measure("NM", neighbors, func(p PromptScore) float64 { return -margin(p) })
	s.ExactES, s.ExactPS = measure("exact_ES", rewrite, exact), measure("exact_PS", paraphrases, exact)
	s.ExactNS = measure("exact_NS", neighbors, func(p PromptScore) float64 { return truth(p.ExactOld) })
	s.generated(list)
	s.Score = harmonic(s.ES, s.PS, s.NS)
	return s
}

// generated averages what was measured of generated texts.
func (s *Scores) generated(list []CaseScores) {
	for name, m := range map[string]struct {
		into **float64
		of   func(*Generated) *float64
		unit float64
	}{
		"GE":      {&s.GE, func(g *Generated) *float64 { return &g.Entropy }, 100},
		"RS":      {&s.RS, func(g *Generated) *float64 { return g.Reference }, 100},
		"essence": {&s.Essence, func(g *Generated) *float64 { return g.Essence }, 1},
	} {
		var all []float64
		for _, c := range list {
			if c.Generated == nil {
				continue
			}
			if v := m.of(c.Generated); v != nil {
				all = append(all, m.unit**v)
			}
		}
		if len(all) > 0 {
			mean, half := meanInterval(all)
			*m.into, s.Interval[name] = &mean, half
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// meanInterval is the mean of a list and half the width of its 95 % interval.
func meanInterval(x []float64) (mean, half float64) {
	n := float64(len(x))
	if n == 0 {
		return 0, 0
	}
	for _, v := range x {
		mean += v / n
	}
	for _, v := range x {
		half += (v - mean) * (v - mean) / n
	}
	return mean, 1.96 * math.Sqrt(half/n)
}
