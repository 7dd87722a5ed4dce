package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the Makefile; a program from go install knows its module's version.
var version string

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func (a *app) versionCommand() *cobra.Command {
	return a.command("version [flags]", "which engram this is", "version prints the version of engram and of Go.",
		cobra.NoArgs, func(*cobra.Command, []string) error {
			out := map[string]string{
				"version": versionText(), "go": runtime.Version(), "system": runtime.GOOS + "/" + runtime.GOARCH,
				"tokenizer": tokenizerKind, "xla": xlaKind,
			}
			return a.print("version", out, nil, func(p *page) {
				p.printf("engram %s (%s, %s, tokenizer %s, XLA %s)\n", safe(out["version"]), out["go"], out["system"],
					tokenizerKind, xlaKind)
			})
		})
}

func inputErrorf(format string, args ...any) error { return inputError{fmt.Errorf(format, args...)} }
