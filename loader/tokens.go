package loader

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/engram-go/engram/transformer"
)

// Tokenizer opens the tokenizer beside the weights; nil without an error if there is none. A tokenizer with ids beyond
// the embedding is refused: its text would be out of range. The opposite is common, because rows are padded to a round
// number; ids without a token have no text then.
func (c *Checkpoint) Tokenizer() (transformer.Tokenizer, error) {
	t, err := openTokenizerFiles(c.folder.path(""), func(name string) ([]byte, error) {
		return readFile(c.folder, name, maxTokenizer)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if n := t.VocabSize(); n > c.Config.Vocab {
		return nil, &failure{
			err: fmt.Errorf("load %s: the tokenizer has ids up to %d, the embedding has %d rows",
				c.folder.path("tokenizer.json"), n-1, c.Config.Vocab),
			kind: ErrCheckpoint,
			hint: fmt.Sprintf("the tokenizer may belong to another model; %s says vocab_size %d", configFile, c.Config.Vocab),
		}
	}
	return t, nil
}
