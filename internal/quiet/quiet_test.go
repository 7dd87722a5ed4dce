package quiet

import (
	"os"
	"testing"
)

// TestTheVariableIsSetAndTakenAway, unless the user has it.
func TestTheVariableIsSetAndTakenAway(t *testing.T) {
	if set && os.Getenv(variable) != "engram" {
		t.Errorf("%s is %q after initialisation", variable, os.Getenv(variable))
	}
	t.Setenv(variable, "true")
	if quieten() || os.Getenv(variable) != "true" {
		t.Errorf("%s of the user became %q", variable, os.Getenv(variable))
	}
	if err := os.Unsetenv(variable); err != nil {
		t.Fatal(err)
	}
	if !quieten() || os.Getenv(variable) == "" {
		t.Errorf("%s is not set", variable)
	}
	defer func(was bool) { set = was }(set)
	set = true
	if err := Restore(); err != nil || os.Getenv(variable) != "" {
		t.Errorf("%s is left as %q, %v", variable, os.Getenv(variable), err)
	}
}
