//go:build !(linux && amd64)

package native

func installCUDA(string) (string, error) { return "", ErrUnsupported }
