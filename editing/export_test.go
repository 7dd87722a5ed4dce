package editing

// Deltas is δ at each evaluation of the search for an edit.
func (e *Edit) Deltas() [][]float64 { return e.trace }

// Helpers of the package for its tests.
var (
	Norm     = norm
	Scale    = scale
	Float64s = float64s
	Float32s = float32s
)
