package loader

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/gomlx/go-huggingface/hub"
)

// The cache has one folder per repository: blobs/ with the files, snapshots/<commit>/ with links to them,
// refs/<revision> with the commit (written by Python and here), and info/<revision> with the hub's answer (written
// by go-huggingface).

func (h *hubClient) repository(name hubName) string {
	return filepath.Join(h.cache, "models--"+strings.ReplaceAll(name.id, "/", "--"))
}

func (h *hubClient) snapshot(name hubName, commit string) string {
	return filepath.Join(h.repository(name), "snapshots", commit)
}

func (h *hubClient) refPath(name hubName) string {
	return filepath.Join(h.repository(name), "refs", filepath.FromSlash(name.revision))
}

func (h *hubClient) infoPath(name hubName) string {
	return filepath.Join(h.repository(name), "info", url.PathEscape(name.revision))
}

func isCommit(s string) bool {
	ok, _ := regexp.MatchString(`^[0-9a-f]{40}$`, s)
	return ok
}

// keepInfo guards the stored answer of the hub, which the library deletes before it asks again.
func (h *hubClient) keepInfo(name hubName) (restore func()) {
	path := h.infoPath(name)
	old, err := os.ReadFile(path)
	return func() {
		if err == nil {
			// Without the file the next start asks the hub once more; nothing else depends on it.
			_ = os.WriteFile(path, old, 0o644)
		}
	}
}

// cached is the folder of a revision that is in the cache with all its files, or "".
func (h *hubClient) cached(name hubName, wantTokenizer bool) string {
	commit, info := name.revision, h.readInfo(h.infoPath(name))
	if !isCommit(commit) {
		raw, err := os.ReadFile(h.refPath(name))
		switch {
		case err == nil:
			commit = strings.TrimSpace(string(raw))
		case info != nil:
			commit = info.CommitHash
		}
	}
	if !isCommit(commit) {
		return ""
	}
	dir := h.snapshot(name, commit)
	f := dirFolder(dir)
	if info == nil || info.CommitHash != commit {
		info = h.infoAbout(name, commit)
	}
	if info != nil {
		if !holdsAll(f, info) {
			return ""
		}
	} else if wantTokenizer && !f.has("tokenizer.json") && !f.has("merges.txt") {
		// Python fetches single files on demand, so a snapshot without a tokenizer may be one that was never asked for.
		return ""
	}
	if !f.has(configFile) {
		return ""
	}
	shards, _, err := weightFiles(f)
	if err != nil {
		return ""
	}
	for _, shard := range shards {
		if !f.has(shard) {
			return ""
		}
	}
	return dir
}

// infoAbout is the hub's answer for a commit under whatever revision it was asked for, or nil.
func (h *hubClient) infoAbout(name hubName, commit string) *hub.RepoInfo {
	paths, _ := filepath.Glob(filepath.Join(h.repository(name), "info", "*"))
	for _, path := range paths {
		if info := h.readInfo(path); info != nil && info.CommitHash == commit {
			return info
		}
	}
	return nil
}

func (h *hubClient) readInfo(path string) *hub.RepoInfo {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	info := &hub.RepoInfo{}
	if json.Unmarshal(raw, info) != nil || !isCommit(info.CommitHash) {
		return nil
	}
	return info
}

// holdsAll reports whether a snapshot has every file that is wanted of the repository, in its full size.
func holdsAll(f dirFolder, info *hub.RepoInfo) bool {
	sizes := map[string]int64{}
	for _, file := range info.Siblings {
		sizes[file.Name] = file.Size
	}
	wanted, err := smallFiles(sizes)
	if err != nil {
		return false
	}
	if shards, _, err := weightFiles(f); err == nil {
		wanted = append(wanted, shards...)
	}
	for _, name := range wanted {
		stat, err := os.Stat(f.path(name))
		if err != nil || sizes[name] > 0 && stat.Size() != sizes[name] {
			return false
		}
	}
	return true
}
