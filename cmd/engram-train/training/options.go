// Package training trains the demo model: a GPT-2-shaped decoder, composed of the engine's own block program in one
// graph, on documents that package facts makes or on lines of text.
package training

import (
	"errors"
	"fmt"
	"math"
)

// Options say how to train. They are saved with every checkpoint; a run goes on only with the same ones.
type Options struct {
	Shape    Shape   `json:"shape"`
	Steps    int     `json:"steps"`
	Batch    int     `json:"batch"`    // rows a step
	Length   int     `json:"length"`   // tokens a row
	Rate     float64 `json:"rate"`     // highest learning rate
	Warmup   int     `json:"warmup"`   // steps until it is reached, linearly
	Floor    float64 `json:"floor"`    // share of it that the cosine decay ends with
	Decay    float64 `json:"decay"`    // decoupled weight decay of matrices
	Clip     float64 `json:"clip"`     // largest norm of the gradient
	Emphasis float64 `json:"emphasis"` // loss weight of tokens that answer, beside 1 for the others
	Noise    float64 `json:"noise"`    // loss weight of tokens that nobody can tell
	Seed     uint64  `json:"seed"`
	Route    Route   `json:"route"`
}

// ErrOptions is wrapped by every error about options that cannot be trained with.
var ErrOptions = errors.New("bad training options")

// check refuses what cannot be trained with.
func (o *Options) check() error {
	positive := []struct {
		name  string
		value float64
	}{
		{"steps", float64(o.Steps)},
		{"batch", float64(o.Batch)},
		{"length", float64(o.Length)},
		{"rate", o.Rate},
		{"clip", o.Clip},
		{"emphasis", o.Emphasis},
	}
	for _, p := range positive {
		if !(p.value > 0) || math.IsInf(p.value, 0) {
			return fmt.Errorf("%w: %s is %g", ErrOptions, p.name, p.value)
		}
	}
	switch {
	case o.Length > o.Shape.Context:
		return fmt.Errorf("%w: rows of %d tokens, the context has %d", ErrOptions, o.Length, o.Shape.Context)
	case o.Route.Share < 0 || o.Route.Share > 1:
		return fmt.Errorf("%w: share of routed rows is %g", ErrOptions, o.Route.Share)
	case !(o.Noise >= 0) || math.IsInf(o.Noise, 0):
		return fmt.Errorf("%w: noise is %g", ErrOptions, o.Noise)
	case o.Floor < 0 || o.Floor > 1 || o.Warmup < 0 || o.Decay < 0:
		return fmt.Errorf("%w: warm-up %d, floor %g, decay %g", ErrOptions, o.Warmup, o.Floor, o.Decay)
	}
	return nil
}

// rate is the learning rate of a step, counted from 1: linear warm-up, then a cosine down to Floor.
func (o *Options) rate(step int) float64 {
	if step <= o.Warmup {
		return o.Rate * float64(step) / float64(o.Warmup)
	}
	done := float64(step-o.Warmup) / float64(max(1, o.Steps-o.Warmup))
	return o.Rate * (o.Floor + (1-o.Floor)*0.5*(1+math.Cos(math.Pi*min(1, done))))
}
