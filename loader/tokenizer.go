package loader

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/engram-go/engram/internal/tokenizers"
	"github.com/engram-go/engram/transformer"
)

// ErrText is wrapped by the errors of Encode about the text itself: one that is not valid UTF-8.
var ErrText = errors.New("bad text")

// maxTokenizer bounds the files of a tokenizer; the largest published ones have 35 MB.
const maxTokenizer = 256 << 20

// OpenTokenizer reads the tokenizer in a folder: tokenizer.json, or GPT-2's vocab.json and merges.txt, with what
// tokenizer_config.json and special_tokens_map.json add. It does what transformers 5 does with the same files: named
// special tokens count as special; what goes around a text is said by tokenizer.json, or without one by add_bos_token
// and add_eos_token. Only the normalizer and the pre-tokenizer are always the file's, where transformers has its own
// for some classes.
//
// Errors wrap fs.ErrNotExist where there is no tokenizer, else ErrCheckpoint. Both builds, with the Rust library and
// without, give the same tokens; the one without refuses files with components that only the library has.
func OpenTokenizer(dir string) (transformer.Tokenizer, error) {
	return openTokenizerFiles(dir, func(name string) ([]byte, error) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			return nil, errors.New("not a regular file")
		}
		file, err := os.Open(path)
		return readTokenizerFile(file, err)
	})
}

// OpenTokenizerFS is OpenTokenizer on a file system, such as one embedded in a program; name is for messages.
func OpenTokenizerFS(fsys fs.FS, name string) (transformer.Tokenizer, error) {
	return openTokenizerFiles(name, func(file string) ([]byte, error) {
		f, err := fsys.Open(file)
		return readTokenizerFile(f, err)
	})
}

func readTokenizerFile(file fs.File, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxTokenizer+1))
	if err == nil && len(data) > maxTokenizer {
		err = fmt.Errorf("larger than %d MiB", maxTokenizer>>20)
	}
	return data, err
}

// openTokenizerFiles opens a tokenizer from files that read gives; it returns fs.ErrNotExist for those not there.
func openTokenizerFiles(where string, read func(name string) ([]byte, error)) (transformer.Tokenizer, error) {
	s := &tokenizerSource{read: read}
	f, err := s.parse()
	if err != nil {
		return nil, tokenizerError(where, s.last, err)
	}
	encode := make(chan encoderResult, 1) // the library takes as long as the rest, so both go on at once
	go func() {
		e, err := newEncoder(f)
		encode <- encoderResult{e, err}
	}()
	vocabulary, err := tokenizers.NewVocabulary(f)
	made := <-encode
	if err = cmp.Or(err, made.err); err != nil {
		return nil, tokenizerError(where, s.last, err)
	}
	t := &tokenizer{encoder: made.encoder, vocabulary: vocabulary}
	for id, text := range vocabulary.Special() {
		t.special = append(t.special, transformer.SpecialToken{ID: id, Text: text})
	}
	slices.SortFunc(t.special, func(a, b transformer.SpecialToken) int { return cmp.Compare(a.ID, b.ID) })
	return t, nil
}

type encoderResult struct {
	encoder encoder
	err     error
}

func tokenizerError(where, file string, err error) error {
	path := filepath.Join(where, file)
	var unsupported *tokenizers.UnsupportedError
	switch {
	case errors.As(err, &unsupported):
		return &failure{fmt.Errorf("load %s: %w", path, err), ErrCheckpoint, unsupportedHint(unsupported)}
	case errors.Is(err, fs.ErrNotExist):
		return &failure{
			fmt.Errorf("load %s: no tokenizer: %w", where, fs.ErrNotExist), ErrCheckpoint,
			"a tokenizer is tokenizer.json, or vocab.json and merges.txt; prompts can be given as ids without one",
		}
	}
	return &failure{fmt.Errorf("load %s: %w", path, err), ErrCheckpoint, ""}
}

// encoder is the part of a tokenizer that differs between the builds.
type encoder interface {
	encode(text string, special bool) ([]tokenizers.Token, error)
}

// tokenizer implements transformer.Tokenizer. It is safe for concurrent use.
type tokenizer struct {
	encoder    encoder
	vocabulary *tokenizers.Vocabulary
	special    []transformer.SpecialToken
}

// Encode splits text into tokens. As in the reference, the tokens that share a character all have its offsets.
func (t *tokenizer) Encode(text string, special bool) ([]transformer.Token, error) {
	if err := tokenizers.CheckText(text); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrText, err)
	}
	tokens, err := t.encoder.encode(text, special)
	if err != nil {
		return nil, fmt.Errorf("encode text of %d bytes: %w", len(text), err)
	}
	out := make([]transformer.Token, len(tokens))
	for i, token := range tokens {
		out[i] = transformer.Token(token)
	}
	return out, nil
}

func (t *tokenizer) Decode(ids []int) (string, error) { return t.vocabulary.Decode(ids) }

func (t *tokenizer) Bytes(id int) []byte { return slices.Clone(t.vocabulary.Bytes(id)) }

func (t *tokenizer) VocabSize() int { return t.vocabulary.Size() }

func (t *tokenizer) Special() []transformer.SpecialToken { return slices.Clone(t.special) }
