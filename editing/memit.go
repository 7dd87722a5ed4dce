package editing

import (
	"context"

	"github.com/engram-go/engram/transformer"
)

// MethodMEMIT names MEMIT.
const MethodMEMIT Method = "memit"

// MEMITOptions are the settings of MEMIT. Statistics say which layers are edited.
type MEMITOptions struct {
	Statistics []*Statistics // second moments of the keys of the layers to edit
	Contexts   []string      // texts put before the prompt, "context. prompt", beside the bare one; nil means none
	Value      ValueOptions  // zeros: as ROME's, but for Clamp, 0.75
	// Lambda is the weight of what the layers hold already, as a number of tokens; 0 means 15000.
	Lambda   float64
	Progress Progress
}

// memitValues are the usual values of MEMIT, for GPT-2 XL.
func memitValues() ValueOptions {
	v := romeValues()
	v.Clamp = 0.75
	return v
}

// Name is MEMIT's.
func (o MEMITOptions) Name() Method { return MethodMEMIT }

// Edit rewrites facts at once.
func (o MEMITOptions) Edit(
	ctx context.Context, m *transformer.Model, facts []Request, earlier []*Edit,
) ([]*Edit, error) {
	edits, err := MEMIT(ctx, m, facts, o)
	compare(edits, earlier)
	return edits, err
}

// MEMIT rewrites many facts at once by changes of the down projections of several layers (Meng et al. 2023, arXiv
// 2210.07229, eq. 14 and algorithm 1). For n facts and layers l₁ < … < l_q,
//
//	Z [d,n] the states of the last layer at the subjects' last tokens for which the targets follow, found as ROME finds
//	        its value, each fact for itself and on the model before the edit
//	K [m,n] the keys there, in the model with the layers before edited; the bare prompt weighs ½, the contexts the rest
//	E [d,n] what is left of Z, Z less the states of the last layer
//	ΔW = E/(layers to go) · Kᵀ (λC + KKᵀ)⁻¹
//
// computed in float64 as E·(λI + S)⁻¹KᵀC⁻¹ with S = KᵀC⁻¹K, [n,n], which is the same. There is an edit for each layer,
// with a column for each fact; a fact's Divisor is the share of its residual that its own key recalls. The model is the
// one with the changes in force, and is left as it was. Errors wrap ErrRequest, ErrSubject, ErrStatistics or ErrLayer
// where the input is at fault.
func MEMIT(ctx context.Context, m *transformer.Model, facts []Request, opts MEMITOptions) ([]*Edit, error) {
	settings := Hyperparameters{ValueOptions: opts.Value.or(memitValues()), Lambda: orElse(opts.Lambda, 15000)}
	b := &spread{
		m: m, method: MethodMEMIT, settings: settings, layers: opts.Statistics, contexts: opts.Contexts,
		site: blockSite(m), share: evenly, directions: ridged(settings.Lambda), progress: opts.Progress,
	}
	return b.edit(ctx, facts)
}

// ridged gives G = C⁻¹K(S + ridge·I)⁻¹ with S = KᵀC⁻¹K.
func ridged(ridge float64) func(*Statistics, [][]float64) ([][]float64, error) {
	return func(c *Statistics, keys [][]float64) ([][]float64, error) {
		solved, err := c.Solve(keys...)
		if err != nil {
			return nil, err
		}
		return combine(solved, gram(keys, solved), ridge)
	}
}

// orElse is v, or the usual value where v is 0.
func orElse(v, usual float64) float64 {
	if v == 0 {
		return usual
	}
	return v
}
