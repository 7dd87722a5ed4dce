package editing

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// ErrRequest is wrapped by errors about facts that cannot be rewritten as asked.
var ErrRequest = errors.New("bad request")

// Request is a fact to rewrite: behind Prompt, a text with one "{}" for the subject, the model is to answer Target.
type Request struct {
	Prompt  string `json:"prompt"`
	Subject string `json:"subject"`
	Target  string `json:"target"`
	// Old is the answer that is to go, where it is known.
	Old string `json:"old,omitempty"`
}

// rewriteRecord is CounterFact's requested_rewrite.
type rewriteRecord struct {
	Prompt    string     `json:"prompt"`
	Subject   string     `json:"subject"`
	TargetNew targetText `json:"target_new"`
	TargetOld targetText `json:"target_true"`
}

// targetText is an object {"str": …, "id": …}, as CounterFact has it, or the text alone.
type targetText struct{ Text, ID string }

// UnmarshalJSON reads either form.
func (t *targetText) UnmarshalJSON(data []byte) error {
	var object struct {
		Str string `json:"str"`
		ID  string `json:"id"`
	}
	if err := json.Unmarshal(data, &object); err == nil {
		*t = targetText{object.Str, object.ID}
		return nil
	}
	return json.Unmarshal(data, &t.Text)
}

// ParseRequests reads CounterFact's requested_rewrite object, a whole record that holds one, or a list of either.
func ParseRequests(data []byte) ([]Request, error) {
	data = bytes.TrimSpace(data)
	if len(data) > 0 && data[0] != '[' {
		data = append(append([]byte{'['}, data...), ']')
	}
	var list []struct {
		rewriteRecord
		Rewrite *rewriteRecord `json:"requested_rewrite"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: not CounterFact's requested_rewrite, nor a list: %w", ErrRequest, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: the list is empty", ErrRequest)
	}
	var out []Request
	for i, item := range list {
		r := item.rewriteRecord
		if item.Rewrite != nil {
			r = *item.Rewrite
		}
		q := Request{r.Prompt, r.Subject, r.TargetNew.Text, r.TargetOld.Text}
		if err := q.check(); err != nil {
			return nil, fmt.Errorf("request %d: %w", i, err)
		}
		out = append(out, q)
	}
	return out, nil
}

// check refuses requests that say too little. A prompt may hold the subject itself in place of "{}".
func (r *Request) check() error {
	switch {
	case r.Subject == "":
		return fmt.Errorf("%w: no subject", ErrRequest)
	case strings.TrimSpace(r.Target) == "":
		return fmt.Errorf("%w: the target is empty", ErrRequest)
	}
	_, err := r.template()
	return err
}

// template is the prompt as parts around the subject.
func (r *Request) template() (Template, error) {
	if strings.Contains(r.Prompt, "{}") {
		return ParseTemplate(r.Prompt)
	}
	return TemplateOf(r.Prompt, r.Subject)
}

// rewrite is a request as tokens: what an editor runs.
type rewrite struct {
	request Request
	rows    []Placed // the bare prompt, then the prompt behind each context
	target  []int
	drift   Placed // "S is a", cut behind the subject's last token: what is predicted there is to stay
}

// place splits a request's prompts into tokens.
func (r *Request) place(m *transformer.Model, contexts []string) (*rewrite, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	tok := m.Tokenizer
	if tok == nil {
		return nil, fmt.Errorf("%w: the model has no tokenizer", ErrRequest)
	}
	t, err := r.template()
	if err != nil {
		return nil, err
	}
	w := &rewrite{request: *r}
	if w.target, err = TargetIDs(tok, r.Target); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	for _, c := range append([]string{""}, contexts...) {
		p, err := t.Behind(c).Place(tok, r.Subject, true)
		if err != nil {
			return nil, err
		}
		w.rows = append(w.rows, p)
	}
	w.drift, err = Template{Suffix: " is a"}.Place(tok, r.Subject, true)
	w.drift.IDs = w.drift.IDs[:w.drift.End]
	return w, err
}

// fact is the description of what is to be rewritten.
func (w *rewrite) fact() Fact {
	return Fact{Request: w.request, TargetIDs: w.target, Merged: w.rows[0].Merged}
}

// batch are the token ids of all rows, the targets but their last token behind each prompt, the drift row last.
func (w *rewrite) batch() [][]int {
	var out [][]int
	for _, p := range w.rows {
		row := append([]int(nil), p.IDs...)
		out = append(out, append(row, w.target[:len(w.target)-1]...))
	}
	return append(out, w.drift.IDs)
}

// lookups are the positions of the subject's last token in the rows of batch.
func (w *rewrite) lookups() []int {
	var out []int
	for _, p := range w.rows {
		out = append(out, p.Last())
	}
	return append(out, w.drift.Last())
}

// reads are the positions that predict the target's tokens, row by row, and then the drift row's subject.
func (w *rewrite) reads() []transformer.Read {
	var out []transformer.Read
	for r, p := range w.rows {
		for i := range w.target {
			out = append(out, transformer.Read{Row: r, Position: len(p.IDs) - 1 + i})
		}
	}
	return append(out, transformer.Read{Row: len(w.rows), Position: w.drift.Last()})
}
