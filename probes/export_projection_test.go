package probes

import (
	"context"

	"github.com/engram-go/engram/transformer"
)

// Project is what a convention makes of vectors [n,d]: their projections [n,V].
func Project(
	ctx context.Context, m *transformer.Model, norm Norm, prompt []int, vectors *transformer.Tensor,
) (*transformer.Tensor, error) {
	p, err := newProjectorAt(ctx, m, norm, prompt)
	if err != nil {
		return nil, err
	}
	return p.project(ctx, vectors)
}
