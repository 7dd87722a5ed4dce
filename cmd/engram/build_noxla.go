//go:build !cgo || noxla

package main

const xlaKind = "left out"
