package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The CPU plugin comes as a wheel that Google publishes, or, where pip or a wheel for the system is missing, from the
// releases that go-xla's own installer uses.
const (
	wheelPackage   = "xla-cpu-pjrt"
	wheelVersion   = "0.0.1"
	wheelEntry     = "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so"
	pluginFile     = "pjrt_c_api_cpu_plugin.so"
	releaseRepo    = "gomlx/pjrt-cpu-binaries"
	releaseVersion = "v0.104.0"
	cudaVersion    = "cuda13"
	cudaFile       = "go-xla/nvidia/pjrt_c_api_cuda_plugin.so"
)

// wheelSums are the SHA-256 of the wheels by os/arch.
func wheelSums() map[string]string {
	return map[string]string{
		"linux/amd64": "55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc",
		"linux/arm64": "8f613be6e891858f40d64f9799319502fff42689661944fc18a6ffd8210b30c9",
	}
}

func (o *Options) xlaOffers() []offer {
	system := o.goos + "/" + o.goarch
	var offers []offer
	if sum, ok := o.sums[system]; ok {
		offers = append(offers, offer{
			wheelVersion, pluginFile, "pip download " + wheelPackage,
			func(ctx context.Context, dir string) error { return o.wheel(ctx, dir, sum) },
		})
	}
	switch system {
	case "linux/amd64", "linux/arm64", "darwin/arm64":
		asset := fmt.Sprintf("pjrt_cpu_%s_%s.tar.gz", o.goos, o.goarch)
		offers = append(offers, offer{
			releaseVersion, pluginFile, "release of " + releaseRepo,
			func(ctx context.Context, dir string) error {
				return o.release(ctx, releaseRepo, releaseVersion, asset, isPlugin, filepath.Join(dir, pluginFile))
			},
		})
	}
	return offers
}

// isPlugin recognises the plugin in a release archive, whose name carries its version.
func isPlugin(base string) bool {
	return strings.HasPrefix(base, "pjrt_c_api_cpu_") &&
		(strings.HasSuffix(base, "_plugin.so") || strings.HasSuffix(base, "_plugin.dylib"))
}

func (o *Options) cudaOffers() []offer {
	if o.goos != "linux" || o.goarch != "amd64" {
		return nil
	}
	return []offer{{cudaVersion, cudaFile, "go-xla's installer", o.cuda}}
}

// cuda runs go-xla's installer, which knows no context: the wait ends with ctx and the process with the wait.
func (o *Options) cuda(ctx context.Context, dir string) error {
	done := make(chan error, 1)
	go func() {
		_, err := o.CUDA(dir)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wheel downloads the wheel with pip, which knows the user's mirrors, proxies and certificates, and keeps the plugin.
func (o *Options) wheel(ctx context.Context, dir, sum string) error {
	tmp, err := os.MkdirTemp(dir, "wheel-")
	if err != nil {
		return err
	}
	if err := o.pip(ctx, tmp); err != nil {
		return err
	}
	wheels, err := filepath.Glob(filepath.Join(tmp, "*.whl"))
	if err != nil {
		return err
	}
	if len(wheels) != 1 {
		return fmt.Errorf("pip left %d wheels, want 1", len(wheels))
	}
	if err := checkSum(wheels[0], sum); err != nil {
		return err
	}
	if err := unzip(ctx, wheels[0], wheelEntry, filepath.Join(dir, pluginFile)); err != nil {
		return err
	}
	return os.RemoveAll(tmp)
}

// pip runs the first pip on the path that can do it.
func (o *Options) pip(ctx context.Context, dir string) error {
	args := []string{
		"download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check",
		"--progress-bar=off", "--dest", dir, wheelPackage + "==" + wheelVersion,
	}
	var failed error
	for _, tool := range [][]string{{"python3", "-m", "pip"}, {"python", "-m", "pip"}, {"pip3"}, {"pip"}} {
		path, err := o.LookPath(tool[0])
		if err != nil {
			continue
		}
		err = o.Run(ctx, Command{
			Path: path,
			Args: append(tool[1:len(tool):len(tool)], args...),
			Dir:  dir,
			Line: func(line string) { o.Progress.Printf("%s: %s", XLACPU, line) },
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		if failed == nil {
			failed = fmt.Errorf("%s: %w", strings.Join(tool, " "), err)
		}
	}
	if failed == nil {
		failed = errors.New("there is no python3 or pip")
	}
	return failed
}
