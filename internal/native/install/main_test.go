package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/native"
)

// alone is a machine without programs and network.
func alone(t *testing.T) native.Options {
	return native.Options{
		Cache:    filepath.Join(t.TempDir(), "cache"),
		LookPath: func(string) (string, error) { return "", errors.New("not found") },
		Releases: "http://127.0.0.1:1",
	}
}

func TestErrorsHaveAHintAndAnExitCode(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		ctx   context.Context
		names []string
		code  int
		want  string
	}{
		{t.Context(), nil, 2, "usage: "},
		{t.Context(), []string{"nonsense"}, 2, "error: unknown native part"},
		{t.Context(), []string{"tokenizers"}, 1, "hint: "},
		{cancelled, []string{"tokenizers"}, 130, "hint: interrupted"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(test.ctx, test.names, &stdout, &stderr, alone(t))
		if code != test.code || !strings.Contains(stderr.String(), test.want) || stdout.Len() != 0 {
			t.Errorf("%v: exit code %d, stderr %q, stdout %q", test.names, code, stderr.String(), stdout.String())
		}
	}
}

func TestFolderIsPrinted(t *testing.T) {
	opts := alone(t)
	if _, err := native.Ensure(t.Context(), native.XLACUDA, opts); errors.Is(err, native.ErrUnsupported) {
		t.Skip("no CUDA plugin for this system")
	}
	opts.CUDA = fakeCUDA
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"xla-cuda"}, &stdout, &stderr, opts); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	if got := strings.TrimSpace(stdout.String()); !strings.HasPrefix(got, opts.Cache) || filepath.Base(got) != "nvidia" {
		t.Errorf("printed %q", got)
	}
}

// fakeCUDA leaves a plugin where go-xla's installer would.
func fakeCUDA(dir string) (string, error) {
	path := filepath.Join(dir, "go-xla", "nvidia", "pjrt_c_api_cuda_plugin.so")
	return path, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("cuda"), 0o644))
}
