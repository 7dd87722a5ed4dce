//go:build !goexperiment.simd

package backend

// simd reports whether the Go backend was built with vector instructions.
const simd = false
