package native

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/engram-go/engram/internal/atomicfile"
)

// maxPart is the largest file that is taken out of an archive: four times the plugin, so that a hostile archive cannot
// fill the disk.
const maxPart = 1 << 30

// Archives are never unpacked: one entry of a known name is copied to a file whose name is ours, so that the names in
// an archive cannot reach other places.

// unzip copies the entry of the zip archive to the file target.
func unzip(ctx context.Context, archive, entry, target string) error {
	r, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, f := range r.File {
		if f.Name != entry {
			continue
		}
		if !f.Mode().IsRegular() {
			return fmt.Errorf("%s in the archive is not a file", entry)
		}
		content, err := f.Open()
		if err != nil {
			return err
		}
		return errors.Join(save(ctx, content, target), content.Close())
	}
	return fmt.Errorf("the archive has no %s", entry)
}

// untar copies the file that match accepts out of the tar.gz archive to the file target.
func untar(ctx context.Context, archive io.Reader, match func(base string) bool, target string) error {
	zr, err := gzip.NewReader(archive)
	if err != nil {
		return err
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the archive has no %s", path.Base(target))
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg && match(path.Base(h.Name)) {
			if err := save(ctx, tr, target); err != nil {
				return err
			}
			// The checksum is at the end of the gzip stream.
			_, err := io.Copy(io.Discard, io.LimitReader(zr, maxPart))
			return err
		}
	}
}

func save(ctx context.Context, content io.Reader, target string) error {
	return atomicfile.Write(ctx, target, func(w io.Writer) error {
		n, err := io.Copy(w, io.LimitReader(content, maxPart+1))
		if err == nil && n > maxPart {
			err = fmt.Errorf("larger than %d bytes", maxPart)
		}
		if err == nil && n == 0 {
			err = errors.New("empty file in the archive")
		}
		return err
	}, atomicfile.Options{})
}

// checkSum compares the file with a SHA-256 in hex.
func checkSum(file, want string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s has SHA-256 %s, want %s: damaged or replaced on the way", path.Base(file), got, want)
	}
	return nil
}
