// Package loader opens public checkpoints: folders as Hugging Face's transformers writes them, models on the hub, and
// the small model that is embedded in the program.
//
// Open gives a model that is ready to run. Inspect describes one without running it. OpenCheckpoint gives access to the
// files themselves, for Fingerprint and Save.
//
//	m, err := loader.Open(ctx, "stories", loader.Options{})
//
// Weight files are mapped, not read: opening looks at headers only, whatever the size of the model. Whatever is wrong
// with a checkpoint is said on opening, with the file, the tensor and, where it can be told, the key of config.json at
// odds; errors wrap ErrCheckpoint, ErrNoModel, ErrHub or ErrExists, and Hint gives advice that goes with them. Nothing
// stays open after an error.
package loader
