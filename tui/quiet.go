package tui

import (
	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/quiet"
)

// The environment is restored when this package is initialised, which is after Bubble Tea, of which it names a type.
var _ = restored(tea.QuitMsg{})

func restored(tea.Msg) error { return quiet.Restore() }
