package tokenizers

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/engram-go/engram/internal/tokenizers/pattern"
)

// component is any normalizer, pre-tokenizer, post-processor or decoder of a file: the union of their settings.
type component struct {
	Type string `json:"type"`

	// Sequence
	Normalizers   []json.RawMessage `json:"normalizers"`
	Pretokenizers []json.RawMessage `json:"pretokenizers"`
	Processors    []json.RawMessage `json:"processors"`
	Decoders      []json.RawMessage `json:"decoders"`

	// Replace, Split, Prepend, Strip, CharDelimiterSplit, Punctuation, Digits, FixedLength
	Pattern          *patternSpec `json:"pattern"`
	Content          string       `json:"content"`
	Behavior         string       `json:"behavior"`
	Invert           bool         `json:"invert"`
	Prepend          string       `json:"prepend"`
	StripLeft        bool         `json:"strip_left"`
	StripRight       bool         `json:"strip_right"`
	Delimiter        string       `json:"delimiter"`
	IndividualDigits bool         `json:"individual_digits"`
	Length           *int         `json:"length"`
	Charsmap         []byte       `json:"precompiled_charsmap"`

	// BertNormalizer
	CleanText          bool  `json:"clean_text"`
	HandleChineseChars bool  `json:"handle_chinese_chars"`
	StripAccents       *bool `json:"strip_accents"`
	Lowercase          bool  `json:"lowercase"`

	// ByteLevel, Metaspace
	AddPrefixSpace *bool  `json:"add_prefix_space"`
	TrimOffsets    *bool  `json:"trim_offsets"`
	UseRegex       *bool  `json:"use_regex"`
	Replacement    string `json:"replacement"`
	PrependScheme  string `json:"prepend_scheme"`
	Split          *bool  `json:"split"`

	// post-processors
	Single        []templatePiece            `json:"single"`
	SpecialTokens map[string]templateSpecial `json:"special_tokens"`
	Sep           *boundToken                `json:"sep"`
	Cls           *boundToken                `json:"cls"`

	// decoders
	Prefix  string `json:"prefix"`
	Suffix  string `json:"suffix"`
	Cleanup bool   `json:"cleanup"`
	Start   int    `json:"start"`
	Stop    int    `json:"stop"`
}

type templatePiece struct {
	Special  *struct{ ID string } `json:"SpecialToken"`
	Sequence *struct{ ID string } `json:"Sequence"`
}

type templateSpecial struct {
	IDs []int `json:"ids"`
}

// boundToken is a token written as ["text", id].
type boundToken struct{ id int }

// UnmarshalJSON reads the pair.
func (b *boundToken) UnmarshalJSON(raw []byte) error {
	var fields []json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return err
	}
	if len(fields) != 2 {
		return errors.New("want a token and its id")
	}
	return json.Unmarshal(fields[1], &b.id)
}

// patternSpec is {"String": …} or {"Regex": …}.
type patternSpec struct {
	String *string `json:"String"`
	Regex  *string `json:"Regex"`
}

func (s *patternSpec) compile() (*pattern.Pattern, error) {
	switch {
	case s == nil || (s.String == nil && s.Regex == nil):
		return nil, fmt.Errorf("%w: pattern missing", ErrFormat)
	case s.String != nil:
		return pattern.Literal(*s.String), nil
	default:
		return pattern.Compile(*s.Regex)
	}
}

func readComponent(raw json.RawMessage) (*component, error) {
	var c component
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if c.Type == "" {
		return nil, fmt.Errorf("%w: component without a type", ErrFormat)
	}
	return &c, nil
}

func orTrue(b *bool) bool { return b == nil || *b }

// wrapPattern turns an expression outside the supported part into an *UnsupportedError.
func wrapPattern(part, name string, err error) error {
	if errors.Is(err, pattern.ErrSyntax) {
		return &UnsupportedError{Part: part, Name: name + ": " + err.Error()}
	}
	return err
}
