package tokenizers

import (
	"fmt"
	"math"
	"unicode/utf8"
)

// newModel builds the model of a file.
func newModel(spec *modelSpec) (model, error) {
	switch spec.kind {
	case "BPE":
		return newBPE(spec)
	case "Unigram":
		return newUnigram(spec), nil
	case "WordPiece":
		return newWordPiece(spec)
	default:
		unk, err := spec.unknown("<unk>")
		return &wordLevel{spec, unk}, err
	}
}

// unknown is the id of the unknown token, -1 where the vocabulary lacks it: then only texts that need it fail.
func (m *modelSpec) unknown(fallback string) (int32, error) {
	text := fallback
	if m.UnkToken != nil {
		text = *m.UnkToken
	}
	if id, ok := m.ids[text]; ok {
		return id, nil
	}
	return -1, nil
}

func unknownError(text string) error {
	return fmt.Errorf("%w: %q is unknown and the vocabulary has no token for that", ErrFormat, text)
}

// wordLevel has a token for every word it knows.
type wordLevel struct {
	spec *modelSpec
	unk  int32
}

func (m *wordLevel) tokenize(text string, out []word) ([]word, error) {
	id, ok := m.spec.ids[text]
	if !ok {
		if id = m.unk; id < 0 {
			return nil, unknownError(text)
		}
	}
	return append(out, word{id, 0, len(text)}), nil
}

// wordPiece takes the longest token that the rest of a word begins with.
type wordPiece struct {
	spec     *modelSpec
	unk      int32
	prefix   string
	maxChars int
	longest  int // bytes of the longest token
}

func newWordPiece(spec *modelSpec) (*wordPiece, error) {
	m := &wordPiece{spec: spec, prefix: "##", maxChars: 100}
	if spec.Prefix != nil {
		m.prefix = *spec.Prefix
	}
	if spec.MaxChars != nil {
		m.maxChars = *spec.MaxChars
	}
	for _, token := range spec.tokens {
		m.longest = max(m.longest, len(token))
	}
	var err error
	m.unk, err = spec.unknown("[UNK]")
	return m, err
}

func (m *wordPiece) tokenize(text string, out []word) ([]word, error) {
	first := len(out)
	if utf8.RuneCountInString(text) <= m.maxChars {
		start := 0
		for start < len(text) {
			id, end := m.longestAt(text, start)
			if id < 0 {
				break
			}
			out = append(out, word{id, start, end})
			start = end
		}
		if start == len(text) {
			return out, nil
		}
	}
	if m.unk < 0 {
		return nil, unknownError(text)
	}
	return append(out[:first], word{m.unk, 0, len(text)}), nil
}

func (m *wordPiece) longestAt(text string, start int) (int32, int) {
	end := len(text)
	if end-start > m.longest {
		for end = start + m.longest; !utf8.RuneStart(text[end]); {
			end--
		}
	}
	for end > start {
		part := text[start:end]
		if start > 0 {
			part = m.prefix + part
		}
		if id, ok := m.spec.ids[part]; ok {
			return id, end
		}
		_, n := utf8.DecodeLastRuneInString(text[:end])
		end -= n
	}
	return -1, 0
}

// unigram finds the cut into tokens with the highest sum of log probabilities.
type unigram struct {
	spec     *modelSpec
	unk      int32 // -1 for none
	unkScore float64
	bytes    [256]int32
	fallback bool
	trie     *trie
}

// unkPenalty is how much worse than the worst token an unknown character is.
const unkPenalty = 10

func newUnigram(spec *modelSpec) *unigram {
	m := &unigram{spec: spec, unk: -1, fallback: isTrue(spec.ByteFallback), trie: &trie{}}
	if spec.UnkID != nil {
		m.unk = int32(*spec.UnkID)
	}
	lowest := math.Inf(1)
	for id, token := range spec.tokens {
		lowest = min(lowest, spec.scores[id])
		if token != "" {
			m.trie.add(token, int32(id))
		}
	}
	m.unkScore = lowest - unkPenalty
	m.bytes = byteTokens(spec)
	return m
}

// best is the best way to reach a place in the text.
type best struct {
	id    int32
	start int // -1: not reached
	score float64
}

func (m *unigram) tokenize(text string, out []word) ([]word, error) {
	path, err := m.bestPath(text)
	if err != nil {
		return nil, err
	}
	for i := len(path) - 1; i >= 0; i-- {
		w := path[i]
		if w.id != m.unk {
			out = append(out, w)
			continue
		}
		for i > 0 && path[i-1].id == m.unk { // neighbouring unknown characters are one token
			i--
			w.end = path[i].end
		}
		out = m.addUnknown(text, w, out)
	}
	return out, nil
}

func (m *unigram) addUnknown(text string, w word, out []word) []word {
	part := text[w.start:w.end]
	if id, ok := m.spec.ids[part]; ok {
		w.id = id
	} else if m.fallback {
		first := len(out)
		for i := range len(part) {
			id := m.bytes[part[i]]
			if id < 0 {
				return append(out[:first], w)
			}
			out = append(out, word{id, w.start, w.end})
		}
		return out
	}
	return append(out, w)
}

// bestPath gives the tokens from the last to the first.
func (m *unigram) bestPath(text string) ([]word, error) {
	ends := make([]best, len(text)+1)
	for i := range ends {
		ends[i].start = -1
	}
	offer := func(start, end int, id int32, score float64) {
		score += ends[start].score
		if ends[end].start < 0 || score > ends[end].score {
			ends[end] = best{id, start, score}
		}
	}
	for start := 0; start < len(text); {
		_, n := utf8.DecodeRuneInString(text[start:])
		single := false
		m.trie.prefixes(text[start:], func(id int32, size int) {
			offer(start, start+size, id, m.spec.scores[id])
			single = single || size == n
		})
		if !single {
			if m.unk < 0 {
				return nil, unknownError(text[start : start+n])
			}
			offer(start, start+n, m.unk, m.unkScore)
		}
		start += n
	}
	var path []word
	for end := len(text); end > 0; end = ends[end].start {
		path = append(path, word{ends[end].id, ends[end].start, end})
	}
	return path, nil
}
