package editing

import (
	"context"
	"fmt"

	"github.com/engram-go/engram/transformer"
)

// Method names an editor.
type Method string

// Editor is a way to rewrite facts. The options structs of the methods are editors; NewEditor makes one by its name.
type Editor interface {
	// Name is the method's.
	Name() Method
	// Edit rewrites facts: all at once where the method can, else one on top of the other. The model is taken with the
	// changes in force and left as it was; Edit.Delta of what is returned, in its order behind them, are the changes.
	// earlier are the edits in force, for methods and guards that look at them; nil means none.
	Edit(ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit) ([]*Edit, error)
}

// Hyperparameters are the numbers of the methods, each of which uses some. Zeros stand for the method's usual values.
type Hyperparameters struct {
	ValueOptions
	Lambda float64 `json:"lambda,omitempty"` // of MEMIT, EMMET, AlphaEdit and PMET, whose options say what it is
	// Threshold and Share are AlphaEdit's, Bound is FT-L's, Old and New are those of the surgery of knowledge neurons.
	Threshold float64 `json:"threshold,omitempty"`
	Share     float64 `json:"share,omitempty"`
	Bound     float64 `json:"bound,omitempty"`
	Old       float64 `json:"old_weight,omitempty"`
	New       float64 `json:"new_weight,omitempty"`
}

// Progress is told how many facts are done; nil means not at all.
type Progress func(done, total int)

// MarshalJSON is null: who is told is no part of what an editor is, which journals write down.
func (p Progress) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

func (p Progress) tell(done, total int) {
	if p != nil {
		p(done, total)
	}
}

// Settings are what NewEditor makes an editor of. Zeros stand for the method's usual values.
type Settings struct {
	Statistics []*Statistics        // of the layers to edit
	Layers     []int                // to edit, for methods that need no statistics
	Neurons    []transformer.Neuron // to change, for the surgery of knowledge neurons; nil means that it finds them
	Contexts   []string             // texts put before the prompt beside the bare one
	Erase      bool                 // of the surgery: set values to zero
	Progress   Progress
	Hyperparameters
}

// Methods are the names that NewEditor knows.
func Methods() []Method {
	return []Method{
		MethodRROME, MethodROME, MethodPROME, MethodMEMIT, MethodEMMET, MethodAlphaEdit, MethodPMET,
		MethodFTM, MethodFTL, MethodFT, MethodKN,
	}
}

// NewEditor makes an editor by its method's name. Errors wrap ErrRequest or ErrStatistics.
func NewEditor(name Method, s Settings) (Editor, error) {
	v := s.ValueOptions
	switch name {
	case MethodRROME, MethodROME, MethodPROME:
		if len(s.Statistics) != 1 {
			return nil, badStatistics("give those of the layer to edit",
				"%s edits one layer, and there are statistics of %d", name, len(s.Statistics))
		}
		return ROMEOptions{
			Method: name, Statistics: s.Statistics[0], Contexts: s.Contexts, Value: v, Progress: s.Progress,
		}, nil
	case MethodMEMIT:
		return MEMITOptions{s.Statistics, s.Contexts, v, s.Lambda, s.Progress}, nil
	case MethodEMMET:
		return EMMETOptions{s.Statistics, s.Contexts, v, s.Lambda, s.Progress}, nil
	case MethodAlphaEdit:
		return AlphaEditOptions{
			Statistics: s.Statistics, Contexts: s.Contexts, Value: v, Lambda: s.Lambda, Threshold: s.Threshold, Share: s.Share,
			Progress: s.Progress,
		}, nil
	case MethodFT, MethodFTL, MethodFTM:
		return FineTuneOptions{Method: name, Layers: s.Layers, Value: v, Bound: s.Bound}, nil
	case MethodKN:
		return SurgeryOptions{
			Neurons: s.Neurons, Contexts: s.Contexts, Old: s.Old, New: s.New, Erase: s.Erase, Progress: s.Progress,
		}, nil
	case MethodPMET:
		return PMETOptions{s.Statistics, s.Contexts, v, s.Lambda, s.Progress}, nil
	}
	return nil, fmt.Errorf("%w: no method %q", ErrRequest, name)
}

// oneByOne makes edits on top of each other.
func oneByOne(
	ctx context.Context, m *transformer.Model, facts []Request,
	progress Progress, edit func(Request) (*Edit, error),
) (out []*Edit, err error) {
	defer m.KeepDeltas()(&err)
	now := m.Deltas()
	for i, f := range facts {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		e, err := edit(f)
		if err != nil && len(facts) > 1 {
			err = fmt.Errorf("fact %d: %w", i, err)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
		progress.tell(i+1, len(facts))
		if i+1 == len(facts) {
			break
		}
		now = append(now, e.Delta())
		if err := m.SetDeltas(now); err != nil {
			return nil, err
		}
	}
	return out, nil
}
