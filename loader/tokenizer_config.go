package loader

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/tokenizers"
)

// tokenizerSource reads the files that make up a tokenizer.
type tokenizerSource struct {
	read func(name string) ([]byte, error)
	last string // the file that was looked at last, for messages
}

// tokenizerSettings is what tokenizer_config.json and special_tokens_map.json say about text.
type tokenizerSettings struct {
	Class          string                           `json:"tokenizer_class"`
	AddBOS         *bool                            `json:"add_bos_token"`
	AddEOS         *bool                            `json:"add_eos_token"`
	AddPrefixSpace bool                             `json:"add_prefix_space"`
	BOS            tokenName                        `json:"bos_token"`
	EOS            tokenName                        `json:"eos_token"`
	Unk            tokenName                        `json:"unk_token"`
	Pad            tokenName                        `json:"pad_token"`
	Sep            tokenName                        `json:"sep_token"`
	Cls            tokenName                        `json:"cls_token"`
	Mask           tokenName                        `json:"mask_token"`
	Additional     tokenNames                       `json:"additional_special_tokens"`
	Extra          tokenNames                       `json:"extra_special_tokens"`
	Added          map[string]tokenizers.AddedToken `json:"added_tokens_decoder"`
}

// tokenName is a token's text, written as a string or as an object with its content; empty for null.
type tokenName string

// UnmarshalJSON reads both forms.
func (t *tokenName) UnmarshalJSON(raw []byte) error {
	var object struct {
		Content string `json:"content"`
	}
	if bytes.HasPrefix(raw, []byte("{")) {
		err := json.Unmarshal(raw, &object)
		*t = tokenName(object.Content)
		return err
	}
	return json.Unmarshal(raw, (*string)(t))
}

// tokenNames is a list of tokens, or an object from their roles to them.
type tokenNames []tokenName

// UnmarshalJSON reads both forms.
func (t *tokenNames) UnmarshalJSON(raw []byte) error {
	if !bytes.HasPrefix(raw, []byte("{")) {
		return json.Unmarshal(raw, (*[]tokenName)(t))
	}
	var roles map[string]tokenName
	err := json.Unmarshal(raw, &roles)
	for _, role := range slices.Sorted(maps.Keys(roles)) {
		*t = append(*t, roles[role])
	}
	return err
}

func (s *tokenizerSettings) named() []tokenName {
	named := []tokenName{s.BOS, s.EOS, s.Unk, s.Pad, s.Sep, s.Cls, s.Mask}
	return slices.Concat(named, s.Additional, s.Extra)
}

// optional reads a file, nil if it is not there.
func (s *tokenizerSource) optional(name string) ([]byte, error) {
	s.last = name
	data, err := s.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

func (s *tokenizerSource) settings() (*tokenizerSettings, error) {
	var out tokenizerSettings
	for _, name := range []string{"special_tokens_map.json", "tokenizer_config.json"} { // the second wins
		data, err := s.optional(name)
		if err != nil {
			return nil, err
		}
		if data == nil {
			continue
		}
		if err := json.Unmarshal(data, &out); err != nil {
			return nil, err
		}
	}
	return &out, nil
}

// parse gives the tokenizer with all that the files beside it say.
func (s *tokenizerSource) parse() (*tokenizers.File, error) {
	settings, err := s.settings()
	if err != nil {
		return nil, err
	}
	data, err := s.optional("tokenizer.json")
	if err == nil && data == nil {
		data, err = s.fromMerges(settings)
	}
	if err != nil {
		return nil, err
	}
	f, err := tokenizers.Parse(data)
	if err != nil {
		return nil, err
	}
	merged := s.last == "merges.txt"
	if merged {
		if err := s.addTokens(f); err != nil {
			return nil, err
		}
	}
	if err := settings.addDecoder(f); err != nil {
		return nil, err
	}
	for _, name := range settings.named() {
		f.MarkSpecial(string(name))
	}
	if !merged {
		return f, nil
	}
	return f, settings.surround(f)
}

// surround puts the tokens around texts that the settings ask for. A tokenizer.json says that itself, and transformers
// 5 then ignores the settings, so this is for the files that cannot say it.
func (s *tokenizerSettings) surround(f *tokenizers.File) error {
	if s.AddBOS == nil && s.AddEOS == nil {
		return nil
	}
	var before, after []string
	if s.AddBOS != nil && *s.AddBOS && s.BOS != "" {
		before = []string{string(s.BOS)}
	}
	if s.AddEOS != nil && *s.AddEOS && s.EOS != "" {
		after = []string{string(s.EOS)}
	}
	return f.Surround(before, after)
}

// addDecoder adds what added_tokens_decoder lists and tokenizer.json does not.
func (s *tokenizerSettings) addDecoder(f *tokenizers.File) error {
	var missing []tokenizers.AddedToken
	for key, t := range s.Added {
		id, err := strconv.Atoi(key)
		if err != nil || t.Content == "" {
			return fmt.Errorf("%w: tokenizer_config.json: added_tokens_decoder: entry %q", tokenizers.ErrFormat, key)
		}
		t.ID = id
		if !f.IsAdded(t.Content) {
			missing = append(missing, t)
		}
	}
	slices.SortFunc(missing, func(a, b tokenizers.AddedToken) int { return a.ID - b.ID })
	for _, t := range missing {
		if err := f.Add(t); err != nil {
			return fmt.Errorf("tokenizer_config.json: %w", err)
		}
	}
	return nil
}

// addTokens reads added_tokens.json, the old place of tokens that vocab.json lacks.
func (s *tokenizerSource) addTokens(f *tokenizers.File) error {
	data, err := s.optional("added_tokens.json")
	if err != nil || data == nil {
		return err
	}
	var ids map[string]int
	if err := json.Unmarshal(data, &ids); err != nil {
		return err
	}
	for _, text := range slices.SortedFunc(maps.Keys(ids), func(a, b string) int { return ids[a] - ids[b] }) {
		if err := f.Add(tokenizers.AddedToken{ID: ids[text], Content: text}); err != nil {
			return err
		}
	}
	return nil
}

// byteLevelPart is GPT-2's way of cutting words and of writing bytes as characters.
type byteLevelPart struct {
	Type           string `json:"type"`
	AddPrefixSpace bool   `json:"add_prefix_space"`
	TrimOffsets    bool   `json:"trim_offsets"`
	UseRegex       bool   `json:"use_regex"`
}

// fromMerges writes the tokenizer.json of a vocab.json and merges.txt.
func (s *tokenizerSource) fromMerges(settings *tokenizerSettings) ([]byte, error) {
	s.last = "vocab.json"
	vocab, err := s.read("vocab.json")
	if err != nil {
		return nil, err
	}
	s.last = "merges.txt"
	lines, err := s.read("merges.txt")
	if err != nil {
		return nil, err
	}
	kind := strings.TrimSuffix(settings.Class, "Fast")
	switch kind {
	case "", "GPT2Tokenizer", "TokenizersBackend", "PreTrainedTokenizer", "CodeGenTokenizer", "RobertaTokenizer":
	default:
		return nil, fmt.Errorf("%w: vocab.json and merges.txt of a %s do not say how it splits words; tokenizer.json does",
			tokenizers.ErrFormat, settings.Class)
	}
	byteLevel := byteLevelPart{"ByteLevel", settings.AddPrefixSpace, true, true}
	out := map[string]any{
		"version": "1.0", "pre_tokenizer": byteLevel, "decoder": byteLevel,
		"model": map[string]any{"type": "BPE", "vocab": json.RawMessage(vocab), "merges": mergeLines(lines)},
	}
	if err := settings.surroundRoberta(kind, out, vocab); err != nil {
		return nil, err
	}
	if settings.BOS == "" && settings.EOS == "" && kind != "RobertaTokenizer" {
		settings.EOS = "<|endoftext|>"
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("vocab.json: %w", err)
	}
	return data, nil
}

// surroundRoberta puts RoBERTa's <s> and </s> around every text.
func (s *tokenizerSettings) surroundRoberta(kind string, out map[string]any, vocab []byte) error {
	if kind != "RobertaTokenizer" {
		return nil
	}
	var ids map[string]int
	if err := json.Unmarshal(vocab, &ids); err != nil {
		return fmt.Errorf("vocab.json: %w", err)
	}
	for name, fallback := range map[*tokenName]tokenName{
		&s.BOS: "<s>", &s.EOS: "</s>", &s.Unk: "<unk>", &s.Pad: "<pad>", &s.Cls: "<s>", &s.Sep: "</s>",
	} {
		if *name == "" {
			*name = fallback
		}
	}
	cls, okCls := ids[string(s.Cls)]
	sep, okSep := ids[string(s.Sep)]
	if !okCls || !okSep {
		return fmt.Errorf("%w: vocab.json: %q or %q is missing", tokenizers.ErrFormat, s.Cls, s.Sep)
	}
	out["post_processor"] = map[string]any{
		"type": "RobertaProcessing", "cls": []any{s.Cls, cls}, "sep": []any{s.Sep, sep},
		"trim_offsets": true, "add_prefix_space": s.AddPrefixSpace,
	}
	if mask, ok := ids["<mask>"]; ok {
		out["added_tokens"] = []tokenizers.AddedToken{{ID: mask, Content: "<mask>", LStrip: true, Special: true}}
	}
	return nil
}

// mergeLines is the pairs of a merges.txt without its header and empty lines.
func mergeLines(data []byte) []string {
	var out []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && !strings.HasPrefix(line, "#version") {
			out = append(out, line)
		}
	}
	return out
}
