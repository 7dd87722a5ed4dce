// Package embedded holds the checkpoints that are part of the program, so that it can show a real language model
// without a download. Origin and licence of each are in its folder.
package embedded

import _ "embed" // the files below

// Default names the checkpoint that is used where none is named.
const Default = "demo"

//go:embed demo/config.json
var demoConfig []byte

//go:embed demo/model.safetensors
var demoModel []byte

//go:embed demo/tokenizer.json
var demoTokenizer []byte

//go:embed demo/tokenizer_config.json
var demoTokenizerConfig []byte

//go:embed demo/README.md
var demoReadme []byte

//go:embed stories/config.json
var storiesConfig []byte

//go:embed stories/generation_config.json
var storiesGeneration []byte

//go:embed stories/model.safetensors
var storiesModel []byte

//go:embed stories/tokenizer.json
var storiesTokenizer []byte

//go:embed stories/tokenizer_config.json
var storiesTokenizerConfig []byte

//go:embed stories/LICENSE
var storiesLicense []byte

//go:embed stories/README.md
var storiesReadme []byte

// Names lists the embedded checkpoints.
func Names() []string { return []string{"demo", "stories"} }

// Files gives the files of an embedded checkpoint by name, or nil. Their bytes are those of the program and must not be
// written.
func Files(name string) map[string][]byte {
	switch name {
	case "demo":
		return map[string][]byte{
			"config.json":           demoConfig,
			"model.safetensors":     demoModel,
			"tokenizer.json":        demoTokenizer,
			"tokenizer_config.json": demoTokenizerConfig,
			"README.md":             demoReadme,
		}
	case "stories":
		return map[string][]byte{
			"config.json":            storiesConfig,
			"generation_config.json": storiesGeneration,
			"model.safetensors":      storiesModel,
			"tokenizer.json":         storiesTokenizer,
			"tokenizer_config.json":  storiesTokenizerConfig,
			"LICENSE":                storiesLicense,
			"README.md":              storiesReadme,
		}
	}
	return nil
}
