package editing

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// GenerationOptions say how texts are written on from a record's generation prompts.
type GenerationOptions struct {
	Tokens     int    // of a text, the prompt's included; 0 means 100
	Seed       uint64 // of the sampling among the 5 most probable tokens
	References *References
}

// Generated is what was written for a record.
type Generated struct {
	Texts   []string `json:"texts"`
	Entropy float64  `json:"entropy"` // of n-grams, bits
	// Reference is the cosine with the reference texts; nil where there are none of the new answer.
	Reference *float64 `json:"reference,omitempty"`
	// Essence is the perplexity of the reference texts about the subject itself; nil where there are none.
	Essence *float64 `json:"essence,omitempty"`
}

// generate writes a text on from each generation prompt of a record and measures them.
func (o *GenerationOptions) generate(
	ctx context.Context, m *transformer.Model, r *CounterFactRecord,
) (*Generated, error) {
	if len(r.Generation) == 0 {
		return nil, nil
	}
	tokens := o.Tokens
	if tokens == 0 {
		tokens = 100
	}
	g := &Generated{}
	for i, prompt := range r.Generation {
		encoded, err := m.Tokenizer.Encode(prompt, true)
		if err != nil {
			return nil, fmt.Errorf("prompt %q: %w", prompt, err)
		}
		ids := idsOf(encoded)
		if n := tokens - len(ids); n > 0 {
			got, err := m.Generate(ctx, [][]int{ids}, transformer.GenerateOptions{
				MaxTokens: n, Temperature: 1, TopK: 5, Seed: o.Seed + uint64(i),
			})
			if err != nil {
				return nil, fmt.Errorf("write on from %q: %w", prompt, err)
			}
			ids = append(ids, got.IDs[0]...)
		}
		text, err := m.Tokenizer.Decode(ids)
		if err != nil {
			return nil, err
		}
		g.Texts = append(g.Texts, text)
	}
	for _, text := range g.Texts {
		g.Entropy += NGramEntropy(text) / float64(len(g.Texts))
	}
	if o.References == nil {
		return g, nil
	}
	g.Reference = o.References.similarity(r.Relation, r.TargetID, g.Texts)
	if text, ok := o.References.about[[3]string{r.Relation, r.OldID, r.Request.Subject}]; ok {
		essence, err := perplexity(ctx, m, text)
		if err != nil {
			return nil, fmt.Errorf("texts about %s: %w", r.Request.Subject, err)
		}
		g.Essence = &essence
	}
	return g, nil
}

// essenceTokens is how many tokens of the texts about a subject are read.
const essenceTokens = 100

// perplexity of a text's first tokens as the ROME authors' code has it: exp of −Σ log P over the number of all tokens,
// though the first is not predicted.
func perplexity(ctx context.Context, m *transformer.Model, text string) (float64, error) {
	encoded, err := m.Tokenizer.Encode(text, true)
	if err != nil {
		return 0, err
	}
	ids := idsOf(encoded)
	ids = ids[:min(len(ids), essenceTokens, m.Config.Context)]
	logits, err := logitsOf(ctx, m, [][]int{ids}, nil)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for p, next := range ids[1:] {
		sum += logSoftmax(logits.At(0, p).Data)[next]
	}
	return math.Exp(-sum / float64(len(ids))), nil
}

// NGramEntropy is the fluency measure GE of Meng et al. (2022) for one text: (⅔·H₂ + 4/3·H₃)/2 with Hₙ the entropy, in
// bits, of the frequencies of the text's n-grams of words and marks. A text that says the same again and again has a
// low one. Words are split as in the Penn treebank; a text with less than n words has Hₙ = 0.
func NGramEntropy(text string) float64 {
	words := pennWords(text)
	return (entropy(words, 2)*2/3 + entropy(words, 3)*4/3) / 2
}

func entropy(words []string, n int) float64 {
	counts, total := map[string]int{}, 0
	var order []string
	for i := 0; i+n <= len(words); i++ {
		gram := strings.Join(words[i:i+n], "\x00")
		if counts[gram]++; counts[gram] == 1 {
			order = append(order, gram)
		}
		total++
	}
	h := 0.0
	for _, gram := range order { // in a fixed order, so that sums are the same every time
		f := float64(counts[gram]) / float64(total)
		h -= f * math.Log2(f)
	}
	return h
}

// pennWords splits a text into words and marks after the conventions of the Penn treebank.
func pennWords(text string) []string {
	for _, rule := range []struct{ pattern, with string }{
		{`^"`, "`` "},
		{`([ (\[{<])"`, "$1 `` "},
		{`"`, " '' "},
		{`([:,])([^\d])`, " $1 $2"},
		{`([:,])$`, " $1 "},
		{`\.\.\.`, " ... "},
		{`[;@#$%&?!]`, " $0 "},
		{`([^.])(\.)([\])}>"']*)\s+([A-Z])`, "$1 $2$3 $4"}, // the end of a sentence inside the text
		{`([^.])(\.)([\])}>"']*)\s*$`, "$1 $2$3 "},
		{`([^'])' `, "$1 ' "},
		{`[\]\[(){}<>]`, " $0 "},
		{`--`, " -- "},
		{`([^' ])('[sS]|'[mM]|'[dD]|') `, "$1 $2 "},
		{`([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) `, "$1 $2 "},
		{`(?i)\b(can)(not)\b`, "$1 $2"},
	} {
		text = regexp.MustCompile(rule.pattern).ReplaceAllString(text+" ", rule.with)
		text = strings.TrimSpace(text)
	}
	return strings.Fields(text)
}

// References are texts about the subjects of which an answer is true, by relation and answer, and how rare the words of
// them are.
type References struct {
	texts map[[2]string]string
	about map[[3]string]string // those about one subject, by its name
	idf   map[string]float64
	none  float64 // for words that no text has
	Count int     `json:"texts"`
}

// ParseReferences reads CounterFact's attribute snippets: a list of {relation_id, target_id, samples: [{name, text}]}.
// A word's weight is ln((1+N)/(1+df)) + 1 over all N texts of the list. Errors wrap ErrRequest.
func ParseReferences(data []byte) (*References, error) {
	var list []struct {
		Relation string `json:"relation_id"`
		Target   string `json:"target_id"`
		Samples  []struct {
			Name string `json:"name"`
			Text string `json:"text"`
		} `json:"samples"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: not a list of reference texts: %w", ErrRequest, err)
	}
	r := &References{texts: map[[2]string]string{}, about: map[[3]string]string{}, idf: map[string]float64{}}
	for _, item := range list {
		var all []string
		for _, s := range item.Samples {
			all = append(all, s.Text)
			if at := [3]string{item.Relation, item.Target, s.Name}; s.Name != "" && s.Text != "" {
				r.about[at] = strings.TrimSpace(r.about[at] + " " + s.Text)
			}
			for word := range wordCounts(s.Text) {
				r.idf[word]++
			}
			r.Count++
		}
		r.texts[[2]string{item.Relation, item.Target}] += " " + strings.Join(all, " ")
	}
	if r.Count == 0 {
		return nil, fmt.Errorf("%w: no reference texts", ErrRequest)
	}
	r.none = math.Log(float64(1+r.Count)) + 1
	for word, n := range r.idf {
		r.idf[word] = math.Log(float64(1+r.Count)/(1+n)) + 1
	}
	return r, nil
}

// similarity is RS of Meng et al. (2022): the cosine of TF-IDF vectors of all generated texts and of all references.
func (r *References) similarity(relation, target string, texts []string) *float64 {
	reference, ok := r.texts[[2]string{relation, target}]
	if !ok {
		return nil
	}
	a, b := r.vector(strings.Join(texts, " ")), r.vector(reference)
	dot, aa, bb := 0.0, 0.0, 0.0
	for word, v := range a {
		dot += v * b[word]
		aa += v * v
	}
	for _, v := range b {
		bb += v * v
	}
	cosine := 0.0
	if aa > 0 && bb > 0 {
		cosine = dot / math.Sqrt(aa) / math.Sqrt(bb)
	}
	return &cosine
}

func (r *References) vector(text string) map[string]float64 {
	out := wordCounts(text)
	for word := range out {
		weight, known := r.idf[word]
		if !known {
			weight = r.none
		}
		out[word] *= weight
	}
	return out
}

// wordCounts counts the runs of two or more letters, digits and underscores, in lower case.
func wordCounts(text string) map[string]float64 {
	out := map[string]float64{}
	for _, word := range regexp.MustCompile(`[\p{L}\p{N}_]{2,}`).FindAllString(strings.ToLower(text), -1) {
		out[word]++
	}
	return out
}
