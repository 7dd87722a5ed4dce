package editing

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/engram-go/engram/internal/journal"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// job is a list of pieces of work, of which the finished ones are kept in a journal.
type job struct {
	path     string         // of the journal; "" keeps nothing
	identity map[string]any // all that the pieces depend on
	progress func(done, total int)
}

// runJob does n pieces of work in their order. Those in the journal are read from it, the others are added to it; when
// all are done it is removed. take is given each piece, old or new, before the next is done. A journal of another job
// is an error that wraps ErrPart.
func runJob[T any](
	ctx context.Context, j job, n int, do func(i int) (T, error), take func(i int, piece T) error,
) (err error) {
	book, err := j.open()
	if err != nil {
		return err
	}
	if book != nil {
		defer func() {
			if err != nil {
				_ = book.Close() // every record was synced
			}
		}()
	}
	for i := range n {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped after %d of %d: %w", i, n, err)
		}
		var piece T
		if book != nil && i < book.Len() {
			err = restore(book, i, &piece)
		} else if piece, err = do(i); err == nil {
			err = keep(book, &piece)
		}
		if err != nil {
			return err
		}
		if err := take(i, piece); err != nil {
			return err
		}
		if j.progress != nil {
			j.progress(i+1, n)
		}
	}
	if book != nil {
		return book.Remove()
	}
	return nil
}

// open opens the journal, nil for none.
func (j *job) open() (*journal.Journal, error) {
	if j.path == "" {
		return nil, nil
	}
	id, err := json.Marshal(j.identity)
	if err != nil {
		return nil, fmt.Errorf("describe the job: %w", err)
	}
	book, err := journal.Open(j.path, id)
	if errors.Is(err, journal.ErrOther) {
		return nil, fmt.Errorf("%w: %s belongs to a job of other options", ErrPart, j.path)
	}
	return book, err
}

func restore(book *journal.Journal, i int, piece any) error {
	record, err := book.Record(i)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(record, piece); err != nil {
		return fmt.Errorf("%w: record %d of the journal: %w", ErrPart, i, err)
	}
	return nil
}

func keep(book *journal.Journal, piece any) error {
	if book == nil {
		return nil
	}
	record, err := json.Marshal(piece)
	if err != nil {
		return fmt.Errorf("keep a piece of the job: %w", err)
	}
	return book.Append(record)
}

// hashOf identifies a value in the description of a job.
func hashOf(value any) string {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode(value) // a hash takes everything, and these values can be written as JSON
	return hex.EncodeToString(h.Sum(nil))
}

// deltasHash identifies the changes that are in force on a model; "" for none.
func deltasHash(m *transformer.Model) string {
	if d := m.Deltas(); len(d) > 0 {
		return hashOf(d)
	}
	return ""
}

// changesHash identifies interventions, with their vectors and reference rows; "" for none.
func changesHash(iv *probes.Interventions) string {
	if len(iv.Changes) > 0 {
		return hashOf(iv)
	}
	return ""
}
