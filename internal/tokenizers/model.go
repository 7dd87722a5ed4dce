package tokenizers

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// modelSpec is the "model" of a file: the vocabulary and how words are cut into its tokens.
type modelSpec struct {
	kind string // "BPE", "Unigram", "WordPiece" or "WordLevel"

	ids    map[string]int32
	tokens []string // by id
	known  []bool   // which ids have a token
	merges map[pair]merge
	scores []float64 // Unigram

	modelFields
}

type modelFields struct {
	Type         string   `json:"type"`
	Dropout      *float64 `json:"dropout"`
	UnkToken     *string  `json:"unk_token"`
	Prefix       *string  `json:"continuing_subword_prefix"`
	Suffix       *string  `json:"end_of_word_suffix"`
	FuseUnk      *bool    `json:"fuse_unk"`
	ByteFallback *bool    `json:"byte_fallback"`
	IgnoreMerges *bool    `json:"ignore_merges"`
	MaxChars     *int     `json:"max_input_chars_per_word"`
	UnkID        *int     `json:"unk_id"`
}

// pair is two neighbouring tokens.
type pair struct{ left, right int32 }

// merge is what a pair becomes; lower ranks go first.
type merge struct{ rank, id int32 }

func (m *modelSpec) count() int { return len(m.ids) }

func (m *modelSpec) prefix() string {
	if m.Prefix == nil {
		return ""
	}
	return *m.Prefix
}

func parseModel(raw []byte) (modelSpec, error) {
	var m modelSpec
	if isNull(raw) {
		return m, errors.New("missing")
	}
	var vocab, merges []byte
	rest := map[string]json.RawMessage{}
	r := &jsonReader{data: raw}
	err := r.object(func(key []byte) error {
		name := string(key)
		value, err := r.raw()
		switch name {
		case "vocab":
			vocab = value
		case "merges":
			merges = value
		default:
			rest[name] = value
		}
		return err
	})
	if err != nil {
		return m, err
	}
	fields, err := json.Marshal(rest)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(fields, &m.modelFields); err != nil {
		return m, err
	}
	if err := m.setKind(vocab, merges); err != nil {
		return m, err
	}
	if m.kind == "Unigram" {
		err = m.readScores(vocab)
	} else {
		err = m.readVocab(vocab)
	}
	if err == nil && m.kind == "BPE" {
		err = m.readMerges(merges)
	}
	return m, err
}

// setKind finds the kind of old files, which do not name it, by their fields.
func (m *modelSpec) setKind(vocab, merges []byte) error {
	m.kind = m.Type
	if m.kind == "" {
		switch {
		case merges != nil:
			m.kind = "BPE"
		case len(vocab) > 0 && vocab[0] == '[':
			m.kind = "Unigram"
		case m.MaxChars != nil:
			m.kind = "WordPiece"
		default:
			m.kind = "WordLevel"
		}
	}
	switch m.kind {
	case "BPE", "Unigram", "WordPiece", "WordLevel":
	default:
		return fmt.Errorf("unknown type %q", m.kind)
	}
	if vocab == nil || (m.kind == "BPE" && merges == nil) {
		return errors.New("vocab or merges missing")
	}
	return nil
}

func (m *modelSpec) readVocab(raw []byte) error {
	guess := len(raw) / 16
	m.ids = make(map[string]int32, guess)
	m.tokens = make([]string, 0, guess)
	r := &jsonReader{data: raw}
	return r.object(func(key []byte) error {
		token := string(key)
		id, err := r.id()
		if err != nil {
			return fmt.Errorf("vocab: token %q: %w", token, err)
		}
		return m.put(token, id)
	})
}

func (m *modelSpec) put(token string, id int) error {
	if old, twice := m.ids[token]; twice {
		return fmt.Errorf("vocab: token %q is listed twice, with ids %d and %d", token, old, id)
	}
	for id >= len(m.tokens) {
		m.tokens = append(m.tokens, make([]string, id+1-len(m.tokens))...)
		m.known = append(m.known, make([]bool, id+1-len(m.known))...)
	}
	if m.known[id] {
		return fmt.Errorf("vocab: tokens %q and %q have the same id %d", m.tokens[id], token, id)
	}
	m.ids[token] = int32(id)
	m.tokens[id], m.known[id] = token, true
	return nil
}

// readScores reads Unigram's list of tokens with their log probabilities. A token may come twice; the last counts.
func (m *modelSpec) readScores(raw []byte) error {
	m.ids = map[string]int32{}
	r := &jsonReader{data: raw}
	err := r.list('[', ']', func() error {
		var token string
		var score float64
		field := 0
		err := r.list('[', ']', func() error {
			field++
			if field == 1 {
				text, err := r.str()
				token = string(text)
				return err
			}
			text, err := r.number()
			if err != nil {
				return err
			}
			var ok bool
			if score, ok = parseScore(text); !ok {
				return fmt.Errorf("score %q", text)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("vocab: entry %d: %w", len(m.tokens), err)
		}
		if field != 2 || len(m.tokens) >= maxID {
			return fmt.Errorf("vocab: entry %d: want a token and a score", len(m.tokens))
		}
		m.ids[token] = int32(len(m.tokens))
		m.tokens, m.known, m.scores = append(m.tokens, token), append(m.known, true), append(m.scores, score)
		return nil
	})
	if err == nil && m.UnkID != nil && (*m.UnkID < 0 || *m.UnkID >= len(m.tokens)) {
		err = fmt.Errorf("unk_id %d is outside the vocabulary of %d", *m.UnkID, len(m.tokens))
	}
	return err
}

// readMerges reads "a b" strings or ["a","b"] pairs.
func (m *modelSpec) readMerges(raw []byte) error {
	m.merges = make(map[pair]merge, len(raw)/16)
	r := &jsonReader{data: raw}
	rank := int32(0)
	var left, right, joined []byte
	return r.list('[', ']', func() error {
		var err error
		if r.take('[') {
			left, right, err = r.mergePair(left[:0], right[:0])
		} else {
			var line []byte
			if line, err = r.str(); err == nil && strings.HasPrefix(string(line), "#version") {
				return nil
			}
			left, right, err = splitMerge(left[:0], right[:0], line, err)
		}
		if err != nil {
			return fmt.Errorf("merges: entry %d: %w", rank, err)
		}
		joined, err = m.addMerge(joined[:0], left, right, rank)
		rank++
		return err
	})
}

func (r *jsonReader) mergePair(left, right []byte) (l, rt []byte, err error) {
	text, err := r.str()
	if err != nil {
		return left, right, err
	}
	left = append(left, text...)
	if !r.take(',') {
		return left, right, r.fail("a comma")
	}
	if text, err = r.str(); err != nil {
		return left, right, err
	}
	right = append(right, text...)
	if !r.take(']') {
		return left, right, r.fail("']'")
	}
	return left, right, nil
}

func splitMerge(left, right, line []byte, err error) (l, r []byte, e error) {
	if err != nil {
		return left, right, err
	}
	a, b, ok := strings.Cut(string(line), " ")
	if !ok || strings.Contains(b, " ") {
		return left, right, fmt.Errorf("want two tokens, got %q", line)
	}
	return append(left, a...), append(right, b...), nil
}

func (m *modelSpec) addMerge(joined, left, right []byte, rank int32) ([]byte, error) {
	a, okLeft := m.ids[string(left)]
	b, okRight := m.ids[string(right)]
	if !okLeft || !okRight {
		return joined, fmt.Errorf("merges: entry %d: %q or %q is not in the vocabulary", rank, left, right)
	}
	cut := len(m.prefix())
	if len(right) < cut || (cut < len(right) && !utf8.RuneStart(right[cut])) {
		return joined, fmt.Errorf("merges: entry %d: %q lacks the prefix %q", rank, right, m.prefix())
	}
	joined = append(append(joined, left...), right[cut:]...)
	id, ok := m.ids[string(joined)]
	if !ok {
		return joined, fmt.Errorf("merges: entry %d: %q + %q gives %q, which is not in the vocabulary",
			rank, left, right, joined)
	}
	m.merges[pair{a, b}] = merge{rank, id}
	return joined, nil
}
