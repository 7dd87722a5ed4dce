package native

import (
	"os"
	"path/filepath"

	"github.com/gomlx/go-xla/installer"
)

// installCUDA fills dir with the plugin and NVIDIA's libraries as go-xla lays them out: the plugin looks for its
// libraries relative to itself.
func installCUDA(dir string) (string, error) {
	nvidia := filepath.Join(dir, "go-xla", "nvidia")
	if err := os.MkdirAll(nvidia, 0o755); err != nil {
		return "", err
	}
	const useCache = false
	if err := installer.CudaInstallNvidiaLibraries(cudaVersion, "latest", nvidia, useCache, installer.Quiet); err != nil {
		return "", err
	}
	if _, err := installer.CudaInstallPJRT(cudaVersion, "latest", nvidia, useCache, installer.Quiet); err != nil {
		return "", err
	}
	// The installer's link names the folder as it is now, before it gets its final name.
	ptxas := filepath.Join(nvidia, "bin", "ptxas")
	if err := os.Remove(ptxas); err != nil {
		return "", err
	}
	if err := os.Symlink("../cu13/bin/ptxas", ptxas); err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.FromSlash(cudaFile)), nil
}
