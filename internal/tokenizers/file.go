package tokenizers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// maxID bounds token ids: tables have an entry for each, and the largest published vocabulary has 2^20.
const maxID = 1 << 24

// ErrFormat is wrapped by every error about a file that is damaged or contradicts itself.
var ErrFormat = errors.New("malformed tokenizer")

// UnsupportedError names a component of a sound file that this package does not have.
type UnsupportedError struct {
	Part string // "normalizer", "pre_tokenizer", "model", "post_processor" or "decoder"
	Name string // the component's type, and what of it if not all
}

// Error names the component.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s %s is not supported", e.Part, e.Name)
}

// AddedToken is a token that is looked for in the text before anything else happens to it.
type AddedToken struct {
	ID         int    `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// File is a parsed tokenizer.json.
type File struct {
	Added []AddedToken

	normalizer    json.RawMessage
	preTokenizer  json.RawMessage
	postProcessor json.RawMessage
	decoder       json.RawMessage
	rawModel      json.RawMessage
	model         modelSpec
}

func isNull(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}

// Parse reads and checks the vocabulary and the added tokens of a tokenizer.json. Errors wrap ErrFormat.
func Parse(data []byte) (*File, error) {
	f, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return f, nil
}

func parse(data []byte) (*File, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("json: invalid UTF-8")
	}
	f := &File{}
	var added json.RawMessage
	sections := map[string]*json.RawMessage{
		"added_tokens": &added, "normalizer": &f.normalizer, "pre_tokenizer": &f.preTokenizer,
		"post_processor": &f.postProcessor, "decoder": &f.decoder, "model": &f.rawModel,
	}
	r := &jsonReader{data: data}
	err := r.object(func(key []byte) error {
		section, known := sections[string(key)]
		raw, err := r.raw()
		if err == nil && known {
			*section = raw
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.space(); r.pos != len(data) {
		return nil, r.fail("the end of the file")
	}
	for name, section := range sections {
		if name != "model" && len(*section) > 0 && !json.Valid(*section) {
			return nil, fmt.Errorf("%s: invalid json", name)
		}
	}
	if f.model, err = parseModel(f.rawModel); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if err := f.parseAdded(added); err != nil {
		return nil, err
	}
	return f, nil
}

// parseAdded checks the ids too: the Rust library gives added tokens the next free ids, whatever the file says, so a
// file that says otherwise would be read differently by different tools.
func (f *File) parseAdded(raw json.RawMessage) error {
	if isNull(raw) {
		return nil
	}
	var tokens []AddedToken
	if err := json.Unmarshal(raw, &tokens); err != nil {
		return fmt.Errorf("added_tokens: %w", err)
	}
	seen := map[AddedToken]bool{}
	for _, t := range tokens {
		if t.Content == "" || seen[t] {
			continue
		}
		seen[t] = true
		if err := f.Add(t); err != nil {
			return err
		}
	}
	return nil
}

// Add appends an added token. Its id must be the vocabulary's for its text, or the next free one.
func (f *File) Add(t AddedToken) error {
	want, known := f.IDOf(t.Content)
	if !known {
		want = f.model.count()
		for _, other := range f.Added {
			if _, inModel := f.model.ids[other.Content]; !inModel {
				want = max(want, other.ID+1)
			}
		}
	}
	if t.ID != want {
		return fmt.Errorf("added token %q: id %d, but the vocabulary gives it %d", t.Content, t.ID, want)
	}
	if t.ID >= maxID {
		return fmt.Errorf("added token %q: id %d is not below %d", t.Content, t.ID, maxID)
	}
	f.Added = append(f.Added, t)
	return nil
}

// IsAdded reports whether a text is an added token already.
func (f *File) IsAdded(text string) bool {
	return slices.ContainsFunc(f.Added, func(t AddedToken) bool { return t.Content == text })
}

// MarkSpecial makes a token special: one that is added already, or one of the vocabulary. Others are left alone, as
// the model has no embedding for them.
func (f *File) MarkSpecial(text string) {
	found := false
	for i := range f.Added {
		if f.Added[i].Content == text {
			f.Added[i].Special, found = true, true
		}
	}
	if id, ok := f.model.ids[text]; ok && !found && text != "" {
		f.Added = append(f.Added, AddedToken{ID: int(id), Content: text, Special: true})
	}
}

// IDOf finds the id of a token by its text in the file, which has the marks of the vocabulary's alphabet.
func (f *File) IDOf(text string) (int, bool) {
	if id, ok := f.model.ids[text]; ok {
		return int(id), true
	}
	for _, t := range f.Added {
		if t.Content == text {
			return t.ID, true
		}
	}
	return 0, false
}

// Surround replaces the post-processor: the tokens named are put before and after every text.
func (f *File) Surround(before, after []string) error {
	single := []any{}
	special := map[string]any{}
	add := func(texts []string) error {
		for _, text := range texts {
			id, ok := f.IDOf(text)
			if !ok {
				return fmt.Errorf("token %q to put around texts is not in the vocabulary: %w", text, ErrFormat)
			}
			single = append(single, map[string]any{"SpecialToken": map[string]any{"id": text, "type_id": 0}})
			special[text] = map[string]any{"id": text, "ids": []int{id}, "tokens": []string{text}}
		}
		return nil
	}
	if err := add(before); err != nil {
		return err
	}
	sequence := func(id string) any { return map[string]any{"Sequence": map[string]any{"id": id, "type_id": 0}} }
	single = append(single, sequence("A"))
	if err := add(after); err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]any{
		"type": "TemplateProcessing", "single": single, "pair": []any{sequence("A"), sequence("B")},
		"special_tokens": special,
	})
	if err != nil {
		return fmt.Errorf("post_processor: %w", err)
	}
	f.postProcessor = raw
	return nil
}

// JSON is the file for another library: with the changes made here, without padding and truncation.
func (f *File) JSON() ([]byte, error) {
	added, err := json.Marshal(f.Added)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Grow(len(f.rawModel) + len(added) + 1<<16)
	out.WriteString(`{"version":"1.0","truncation":null,"padding":null`)
	section := func(name string, raw []byte) {
		if len(raw) == 0 {
			raw = []byte("null")
		}
		out.WriteString("," + strconv.Quote(name) + ":")
		out.Write(raw)
	}
	if len(f.Added) == 0 {
		added = []byte("[]")
	}
	section("added_tokens", added)
	section("normalizer", f.normalizer)
	section("pre_tokenizer", f.preTokenizer)
	section("post_processor", f.postProcessor)
	section("decoder", f.decoder)
	section("model", f.rawModel)
	out.WriteByte('}')
	return out.Bytes(), nil
}
