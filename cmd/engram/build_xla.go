//go:build cgo && !noxla

package main

const xlaKind = "built in"
