package editing

import (
	"context"

	"github.com/engram-go/engram/transformer"
)

// MethodPMET names PMET.
const MethodPMET Method = "pmet"

// PMETOptions are the settings of PMET. Statistics say which layers are edited.
type PMETOptions struct {
	Statistics []*Statistics
	Contexts   []string
	Value      ValueOptions // zeros: as MEMIT's, but for Steps 30, Rate 0.2 and KL 1
	Lambda     float64      // as MEMIT's; 0 means 6000
	Progress   Progress
}

// pmetValues are the usual values of PMET, for GPT-J.
func pmetValues() ValueOptions {
	v := memitValues()
	v.Steps, v.Rate, v.KL = 30, 0.2, 1
	return v
}

// Name is PMET's.
func (o PMETOptions) Name() Method { return MethodPMET }

// Edit rewrites facts at once.
func (o PMETOptions) Edit(
	ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit,
) ([]*Edit, error) {
	edits, err := PMET(ctx, m, facts, o)
	compare(edits, earlier)
	return edits, err
}

// PMET is MEMIT with another target (Li et al. 2024, arXiv 2308.08742): what attention and what the down projection of
// the last layer add are searched together, and only the latter is written, since attention knows how to extract and
// not what. Tokens of the target that are the most probable ones already weigh a tenth in the search, which ends when
// all are and the drift is at most 0.01. Each layer takes 1/√(layers to go) of what is left. Together that is more than
// all of it and makes up for attention's part; an edit of one layer is warned about. The rest is as in MEMIT.
func PMET(ctx context.Context, m *transformer.Model, facts []Request, opts PMETOptions) ([]*Edit, error) {
	settings := Hyperparameters{ValueOptions: opts.Value.or(pmetValues()), Lambda: orElse(opts.Lambda, 6000)}
	b := &spread{
		m: m, method: MethodPMET, settings: settings, layers: opts.Statistics, contexts: opts.Contexts,
		site: transformer.DownOut, share: rootShare, directions: ridged(settings.Lambda),
		progress: opts.Progress, settled: true,
	}
	edits, err := b.edit(ctx, facts)
	if err == nil && len(edits) == 1 {
		edits[0].warn("pmet leaves out what attention is to add: the shares of several layers make up for it, those of one " +
			"do not")
	}
	return edits, err
}
