package backend

import (
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute"
)

// requireXLA skips the test on a machine without XLA, unless the environment asks for it.
func requireXLA(t *testing.T) {
	t.Helper()
	for _, s := range List() {
		if s.Name == XLACPU && !s.Available {
			if strings.Contains(os.Getenv("ENGRAM_TEST_BACKENDS"), XLACPU) {
				t.Fatalf("XLA is asked for: %s", s.Reason)
			}
			t.Skipf("XLA: %s", s.Reason)
		}
	}
}

func TestEveryBackendMultipliesCorrectly(t *testing.T) {
	for _, s := range List() {
		t.Run(s.Name, func(t *testing.T) {
			if !s.Available {
				t.Skip(s.Reason)
			}
			be, info, err := Open(s.Name)
			if err != nil {
				t.Fatal(err)
			}
			defer be.Finalize()
			if info.Name != s.Name || info.Description == "" || len(info.Devices) == 0 || info.Fallback != "" {
				t.Errorf("info %+v", info)
			}
			result, err := Check(t.Context(), be)
			if err != nil || result.GFLOPS <= 0 || result.Runs < 3 || result.Size != checkSize {
				t.Errorf("%+v, %v", result, err)
			}
			t.Logf("%s: %.1f GFLOP/s, error %.1e", info.Description, result.GFLOPS, result.MaxError)
		})
	}
}

func TestXLAPresentsOneDeviceAndItsPlugin(t *testing.T) {
	requireXLA(t)
	be, info, err := Open(XLACPU)
	if err != nil {
		t.Fatal(err)
	}
	defer be.Finalize()
	if be.NumDevices() != 1 || !filepath.IsAbs(info.Plugin) || !strings.Contains(info.Description, "PJRT") {
		t.Errorf("%d devices, %+v", be.NumDevices(), info)
	}
	again, _, err := Open("xla:" + info.Plugin)
	if err != nil {
		t.Fatal(err)
	}
	again.Finalize()
}

func TestXLAIsQuiet(t *testing.T) {
	if os.Getenv("OPEN_AND_EXIT") != "" {
		for _, name := range []string{XLACPU, "xla:" + os.Args[0], "xla:/nonexistent/pjrt_c_api_cpu_plugin.so"} {
			if be, _, err := Open(name); err == nil {
				be.Finalize()
			}
		}
		return
	}
	requireXLA(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestXLAIsQuiet$")
	cmd.Env = append(os.Environ(), "OPEN_AND_EXIT=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if stderr.Len() != 0 {
		t.Errorf("opening writes to stderr: %q", stderr.String())
	}
}

func TestUnknownName(t *testing.T) {
	for _, name := range []string{"tpu", "xla", "xla:rocm", "GO"} {
		_, _, err := Open(name)
		var failed *Error
		if !errors.Is(err, ErrUnknown) || !errors.As(err, &failed) || !strings.Contains(failed.Hint(), XLACPU) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestEnvironmentNamesTheDefault(t *testing.T) {
	t.Setenv(Env, Go)
	be, info, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	be.Finalize()
	if info.Name != Go {
		t.Errorf("opened %s", info.Name)
	}
	t.Setenv(Env, "nonsense")
	if _, _, err := Open(""); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestWithoutPluginsAutoFallsBackToGoAndSaysWhy(t *testing.T) {
	t.Setenv("ENGRAM_CACHE", t.TempDir())
	be, info, err := Open(Auto)
	if err != nil {
		t.Fatal(err)
	}
	be.Finalize()
	if info.Name != Go || !strings.Contains(info.Fallback, XLACPU) || strings.Contains(info.Fallback, "\n") {
		t.Errorf("%+v", info)
	}
	_, _, err = Open(XLACPU)
	var failed *Error
	if !errors.Is(err, ErrUnavailable) || !errors.As(err, &failed) || !strings.Contains(failed.Hint(), "engram setup") {
		t.Errorf("got %v", err)
	}
	for _, s := range List() {
		if s.Available != (s.Name == Go) || !s.Available && (s.Reason == "" || s.Hint == "") {
			t.Errorf("%+v", s)
		}
	}
}

func TestPluginsThatAreNone(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "pjrt_c_api_cpu_plugin.so")
	if err := os.WriteFile(text, []byte("not a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(dir, "cuda", "pjrt_c_api_cpu_plugin.so")
	if err := errors.Join(os.Mkdir(filepath.Dir(wrong), 0o755), os.WriteFile(wrong, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{text, wrong, dir, filepath.Join(dir, "missing.so"), filepath.Join(dir, "a,b.so")} {
		if _, _, err := Open("xla:" + path); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestAutoTakesTheFirstThatOpens(t *testing.T) {
	boom := func() (compute.Backend, Info, error) { panic("graph exploded") }
	be, info, err := openAuto([]opener{{XLACUDA, openGo}, {XLACPU, boom}, {Go, openGo}})
	if err != nil || info.Name != XLACUDA || info.Fallback != "" {
		t.Fatalf("%+v, %v", info, err)
	}
	be.Finalize()
	be, info, err = openAuto([]opener{{XLACPU, boom}, {Go, openGo}})
	if err != nil || info.Name != Go || !strings.Contains(info.Fallback, "graph exploded") {
		t.Fatalf("%+v, %v", info, err)
	}
	be.Finalize()
	if _, _, err := openAuto([]opener{{XLACPU, boom}}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestCheckStopsWithItsContext(t *testing.T) {
	be, _, err := Open(Go)
	if err != nil {
		t.Fatal(err)
	}
	defer be.Finalize()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Check(ctx, be); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestCheckSeesAWrongProduct(t *testing.T) {
	a, b := testMatrix(1), testMatrix(2)
	got := make([]float32, checkSize*checkSize)
	if e := productError(a, b, got); !(e > maxError) {
		t.Errorf("a product of zeros has error %g", e)
	}
	got[5] = float32(math.NaN())
	if e := productError(a, b, got); !math.IsInf(e, 1) {
		t.Errorf("a product with a NaN has error %g", e)
	}
}
