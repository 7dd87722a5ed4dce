package tui

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
)

// TestFilesAtHand: an index of the model is at hand once it is opened; what is no such file, or is not there, is an error
// on the screen.
func TestFilesAtHand(t *testing.T) {
	backendtest.Long(t)
	onDemo(t, 100, 30, Options{}, func(t *testing.T, d *driver) {
		dir := t.TempDir()
		path, junk := filepath.Join(dir, "values.safetensors"), filepath.Join(dir, "junk.safetensors")
		if _, err := probes.BuildIndex(t.Context(), d.app.state.Model, probes.IndexOptions{Top: 2, Out: path}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(junk, []byte("no tensors"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{junk, filepath.Join(dir, "nothing")} {
			d.run(d.app.Run("open " + bad))
			if !d.app.failed || len(d.app.files) != 0 {
				t.Errorf("%s: message %q, %d files", bad, d.app.message, len(d.app.files))
			}
		}
		d.run(d.app.Run("open " + path))
		f := d.app.file(func(f *atHand) bool { return f.index != nil })
		if f == nil || f.index.Top != 2 || f.kind != "projection index" {
			t.Fatalf("at hand %+v: %s", f, d.app.message)
		}
	})
}
