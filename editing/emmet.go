package editing

import (
	"context"

	"github.com/engram-go/engram/transformer"
)

// MethodEMMET names EMMET.
const MethodEMMET Method = "emmet"

// EMMETOptions are the settings of EMMET. Statistics say which layers are edited, usually one.
type EMMETOptions struct {
	Statistics []*Statistics
	Contexts   []string
	Value      ValueOptions // zeros: as MEMIT's
	// Lambda is what is added to the diagonal of KᵀC⁻¹K for several facts, ε times the factor of C in the paper's code;
	// 0 means 0.1, negative none. One fact needs none.
	Lambda   float64
	Progress Progress
}

// Name is EMMET's.
func (o EMMETOptions) Name() Method { return MethodEMMET }

// Edit rewrites facts at once.
func (o EMMETOptions) Edit(
	ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit,
) ([]*Edit, error) {
	edits, err := EMMET(ctx, m, facts, o)
	compare(edits, earlier)
	return edits, err
}

// EMMET rewrites a batch of facts so that each is recalled exactly: ROME's constraint for several facts at once (Gupta
// et al. 2024, arXiv 2403.14236, eq. 8), ΔW = E·(KᵀC⁻¹K + λI)⁻¹KᵀC⁻¹. Keys, targets and layers are MEMIT's, which asks
// for the facts with a finite weight instead. For one fact λ is 0, and the change is that of r-ROME for the same
// target. The rest is as in MEMIT.
func EMMET(ctx context.Context, m *transformer.Model, facts []Request, opts EMMETOptions) ([]*Edit, error) {
	settings := Hyperparameters{ValueOptions: opts.Value.or(memitValues()), Lambda: max(0, orElse(opts.Lambda, 0.1))}
	if len(facts) == 1 {
		settings.Lambda = 0
	}
	b := &spread{
		m: m, method: MethodEMMET, settings: settings, layers: opts.Statistics, contexts: opts.Contexts,
		site: blockSite(m), share: evenly, directions: ridged(settings.Lambda), progress: opts.Progress,
	}
	return b.edit(ctx, facts)
}
