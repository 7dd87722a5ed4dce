package native

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	tokenizersModule  = "github.com/daulet/tokenizers"
	tokenizersRepo    = "daulet/tokenizers"
	tokenizersVersion = "1.27.0"
	tokenizersFile    = "libtokenizers.a"
)

// The crate is built under a manifest of our own: the module's wants a dependency from a git repository, which closed
// networks do not reach, and a WebAssembly package that is of no use here. The lock file is the module's with that one
// dependency changed; it names the registry by a word that is replaced by what the module's lock file says.
var (
	//go:embed crate/Cargo.toml
	crateManifest []byte
	//go:embed crate/Cargo.lock.in
	crateLock []byte
)

func (o *Options) tokenizersOffers() []offer {
	var offers []offer
	if o.goos == "linux" || o.goos == "darwin" {
		offers = append(offers, offer{tokenizersVersion, tokenizersFile, "cargo build", o.cargo})
	}
	switch system := o.goos + "-" + o.goarch; system {
	case "linux-amd64", "linux-arm64", "darwin-arm64", "darwin-amd64":
		asset := "libtokenizers." + strings.Replace(system, "darwin-amd64", "darwin-x86_64", 1) + ".tar.gz"
		offers = append(offers, offer{
			tokenizersVersion, tokenizersFile, "release of " + tokenizersRepo,
			func(ctx context.Context, dir string) error {
				isLibrary := func(base string) bool { return base == tokenizersFile }
				target := filepath.Join(dir, tokenizersFile)
				return o.release(ctx, tokenizersRepo, "v"+tokenizersVersion, asset, isLibrary, target)
			},
		})
	}
	return offers
}

// cargo builds the library from the source in Go's module cache.
func (o *Options) cargo(ctx context.Context, dir string) error {
	cargo, err := o.LookPath("cargo")
	if err != nil {
		return errors.New("there is no cargo")
	}
	module, err := o.moduleSource(ctx)
	if err != nil {
		return err
	}
	crate := filepath.Join(dir, "crate")
	if err := writeCrate(crate, module); err != nil {
		return err
	}
	target := filepath.Join(dir, "target")
	if err := o.Run(ctx, Command{
		Path: cargo,
		Args: []string{"build", "--release", "--locked", "--target-dir", target},
		Dir:  crate,
		Line: func(line string) { o.Progress.Printf("%s (about two minutes): %s", Tokenizers, line) },
	}); err != nil {
		return err
	}
	const built = "libtokenizers_ffi.a"
	library := filepath.Join(target, "release", built)
	if _, err := os.Stat(library); err != nil {
		// A target chosen in cargo's configuration has a folder of its own.
		if other, _ := filepath.Glob(filepath.Join(target, "*", "release", built)); len(other) == 1 {
			library = other[0]
		}
	}
	if err := os.Rename(library, filepath.Join(dir, tokenizersFile)); err != nil {
		return fmt.Errorf("cargo left no library: %w", err)
	}
	return errors.Join(os.RemoveAll(target), os.RemoveAll(crate))
}

// moduleSource is the folder of the module's source, which Go fetches if need be.
func (o *Options) moduleSource(ctx context.Context) (string, error) {
	goTool, err := o.LookPath("go")
	if err != nil {
		return "", errors.New("there is no go command")
	}
	var out bytes.Buffer
	module := tokenizersModule + "@v" + tokenizersVersion
	if err := o.Run(ctx, Command{
		Path: goTool, Args: []string{"mod", "download", "-json", module}, Stdout: &out,
	}); err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	var answer struct{ Dir, Error string }
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	if answer.Error != "" || answer.Dir == "" {
		return "", fmt.Errorf("go mod download %s: no folder: %s", module, answer.Error)
	}
	return answer.Dir, nil
}

// writeCrate lays out the crate: our manifest and lock file, the module's one source file.
func writeCrate(crate, module string) error {
	upstream, err := os.ReadFile(filepath.Join(module, "Cargo.lock"))
	if err != nil {
		return err
	}
	registry, ok := firstLine(string(upstream), `source = "registry+`)
	if !ok {
		return fmt.Errorf("%s names no registry", filepath.Join(module, "Cargo.lock"))
	}
	source, err := os.ReadFile(filepath.Join(module, "crates", "tokenizers", "src", "lib.rs"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(crate, "src"), 0o755); err != nil {
		return err
	}
	lock := bytes.ReplaceAll(crateLock, []byte(`source = "REGISTRY"`), []byte(registry))
	return errors.Join(
		os.WriteFile(filepath.Join(crate, "Cargo.toml"), crateManifest, 0o644),
		os.WriteFile(filepath.Join(crate, "Cargo.lock"), lock, 0o644),
		os.WriteFile(filepath.Join(crate, "src", "lib.rs"), source, 0o644),
	)
}
