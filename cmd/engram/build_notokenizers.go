//go:build !cgo || !tokenizers

package main

const tokenizerKind = "in Go"
