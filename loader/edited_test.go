package loader

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// someChanges are random changes of the last layer, of rank 2 and 1, and one of the first.
func someChanges(c *transformer.Config) (out []transformer.Delta) {
	rng := rand.New(rand.NewPCG(5, 6))
	vector := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64() / 8)
		}
		return v
	}
	for _, layer := range []int{c.Layers - 1, 0, c.Layers - 1} {
		d := transformer.Delta{Layer: layer}
		for range 1 + len(out)/2 {
			d.Left, d.Right = append(d.Left, vector(c.Width)), append(d.Right, vector(c.FFN.Hidden))
		}
		out = append(out, d)
	}
	return out
}

// A checkpoint with changes can be taken back to what it was, file by file; a second time there is nothing to take back.
func TestRevertIsBitExact(t *testing.T) {
	for _, dir := range append(checkpoints(t), writeFiles(t, newToy(t, toyConfig).sharded(t, nil))) {
		c, parent := mustOpen(t, dir), t.TempDir()
		if c.Config.HasExperts(0) || c.Config.HasExperts(c.Config.Layers-1) {
			continue
		}
		changes := someChanges(c.Config)
		edited, back := filepath.Join(parent, "edited"), filepath.Join(parent, "back")
		wrote, err := SaveEdited(t.Context(), c, edited, changes, EditedOptions{Undo: true})
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		if len(wrote.Tensors) != 2 || wrote.Fingerprint == wrote.FingerprintBefore {
			t.Errorf("%s: %+v", dir, wrote)
		}
		if _, err := VerifyEdited(t.Context(), c, edited, changes); err != nil {
			t.Error(err)
		}
		_, err = VerifyEdited(t.Context(), c, edited, changes[:1])
		wantError(t, err, ErrCheckpoint, "is not what it should be")
		reverted, err := Revert(t.Context(), mustOpen(t, edited), back, nil)
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		if reverted.Fingerprint != wrote.FingerprintBefore {
			t.Errorf("%s: reverted to %s, not %s", dir, reverted.Fingerprint, wrote.FingerprintBefore)
		}
		want := readAll(t, dir)
		for name, data := range readAll(t, back) {
			if !bytes.Equal(data, want[name]) {
				t.Errorf("%s: %s is not what it was", dir, name)
			}
		}
		_, err = Revert(t.Context(), mustOpen(t, back), filepath.Join(parent, "again"), nil)
		wantError(t, err, ErrCheckpoint, "does not hold what its edits replaced")
	}
}

// What cannot be put back is refused and leaves nothing.
func TestRevertRefuses(t *testing.T) {
	dir := writeFiles(t, newToy(t, toyConfig).files(t))
	c, parent := mustOpen(t, dir), t.TempDir()
	edited := filepath.Join(parent, "edited")
	if _, err := SaveEdited(t.Context(), c, edited, someChanges(c.Config), EditedOptions{Undo: true}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(edited, UndoFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(good)
	other[len(other)-1] ^= 1
	for what, data := range map[string][]byte{"not the one that was edited": other, "header": good[:20]} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(parent, "back")
		_, err := Revert(t.Context(), mustOpen(t, edited), to, nil)
		wantError(t, err, ErrCheckpoint, what)
		if _, err := os.Stat(to); err == nil {
			t.Errorf("%s: %s was written", what, to)
		}
	}
}

// An adapter's file is checked as a whole.
func TestAdapterIsVerified(t *testing.T) {
	c := mustOpen(t, writeFiles(t, newToy(t, toyConfig).files(t)))
	dir, changes := filepath.Join(t.TempDir(), "adapter"), someChanges(c.Config)
	got, err := SaveAdapter(t.Context(), c, dir, changes)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Modules) != 2 || got.Ranks["model.layers.1.mlp.down_proj"] != 3 || got.Ranks["model.layers.0.mlp.down_proj"] != 1 {
		t.Errorf("%+v", got)
	}
	if err := VerifyAdapter(c, dir, changes); err != nil || !IsAdapter(dir) {
		t.Error(err)
	}
	wantError(t, VerifyAdapter(c, dir, changes[1:]), ErrCheckpoint, "is not what it should be")
	_, err = SaveAdapter(t.Context(), c, dir, changes)
	wantError(t, err, ErrExists, "already exists")
	path := filepath.Join(dir, adapterWeights)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, VerifyAdapter(c, dir, changes), ErrCheckpoint, "is not what it should be")
}

// Transformers loads the edited checkpoint, and peft the adapter beside the original, with the logits of the edited
// model here; both orientations of the stored matrix.
func TestEditedModelsLoadInPython(t *testing.T) {
	backendtest.Long(t)
	if out, err := exec.Command("python3", "-c", "import torch, transformers, peft").CombinedOutput(); err != nil {
		t.Skipf("python3 with torch, transformers and peft is not installed: %v %.100s", err, out)
	}
	be := backendtest.Open(t, "go")
	ids := []int{3, 1, 4, 1, 5, 9, 2, 6}
	args, want := []string{"testdata/edited_logits.py"}, [][]float64{}
	for _, name := range []string{"gpt2", "llama"} {
		dir := filepath.Join("..", "testdata", "goldens", name)
		c, parent := mustOpen(t, dir), t.TempDir()
		changes := someChanges(c.Config)
		edited, adapter := filepath.Join(parent, "edited"), filepath.Join(parent, "adapter")
		if _, err := SaveEdited(t.Context(), c, edited, changes, EditedOptions{Undo: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := SaveAdapter(t.Context(), c, adapter, changes); err != nil {
			t.Fatal(err)
		}
		m, err := Open(t.Context(), dir, Options{Backend: be})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, logitsWith(t, m, ids, changes))
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		args = append(args, dir, edited, adapter)
	}
	cmd := exec.Command("python3", args...)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, err.(*exec.ExitError).Stderr)
	}
	var got []map[string][]float64
	if err := json.Unmarshal(out, &got); err != nil || len(got) != len(want) {
		t.Fatalf("%v: %s", err, out)
	}
	for i, model := range got {
		for _, kind := range []string{"checkpoint", "adapter"} {
			worst := 0.0
			for j, v := range want[i] {
				worst = max(worst, math.Abs(v-model[kind][j]))
			}
			if !(worst <= 2e-4) || len(model[kind]) != len(want[i]) {
				t.Errorf("model %d as %s: logits are off by %g", i, kind, worst)
			}
		}
	}
}

// logitsWith are the logits of the last position with changes in force.
func logitsWith(t *testing.T, m *transformer.Model, ids []int, changes []transformer.Delta) (out []float64) {
	t.Helper()
	if err := m.SetDeltas(changes); err != nil {
		t.Fatal(err)
	}
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range x.At(0, len(ids)-1).Data {
		out = append(out, float64(v))
	}
	return out
}
