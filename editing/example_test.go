package editing_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gomlx/compute/gobackend"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// A fact is rewritten, checked and shipped: what engram edit run does with a plan.
func ExamplePlan_Run() {
	ctx := context.Background()
	m, checkpoint, dir, done := openExample(ctx, "stories")
	defer done()

	statistics, err := editing.Identity(m, 2) // or editing.LoadStatistics
	check(err)
	editor, err := editing.NewEditor(editing.MethodRROME, editing.Settings{Statistics: []*editing.Statistics{statistics}})
	check(err)
	plan, err := editing.ParsePlan([]byte(`
requests: [{prompt: "{} was very", subject: Tom, target: sad}]
checks:   [{prompt: "Tom was very", prefers: sad, over: happy}]`))
	check(err)
	result, err := plan.Run(ctx, m, editor, nil)
	check(err)
	fmt.Println("all checks passed:", result.OK)
	edited, err := loader.SaveEdited(ctx, checkpoint, dir, result.Edits.Deltas(), loader.EditedOptions{})
	check(err)
	fmt.Println("changed:", edited.Tensors)
	// Output:
	// all checks passed: true
	// changed: [model.layers.2.mlp.down_proj.weight]
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// openExample opens a model and its files, and names a folder that is not there yet.
func openExample(ctx context.Context, name string) (*transformer.Model, *loader.Checkpoint, string, func()) {
	backend, err := gobackend.New("ops_sequential")
	check(err)
	m, err := loader.Open(ctx, name, loader.Options{Backend: backend})
	check(err)
	c, err := loader.OpenCheckpoint(ctx, name, loader.Options{})
	check(err)
	dir, err := os.MkdirTemp("", "example")
	check(err)
	return m, c, filepath.Join(dir, "edited"), func() {
		_, _ = m.Close(), c.Close()
		backend.Finalize()
		_ = os.RemoveAll(dir)
	}
}
