package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/gomlx/go-huggingface/hub"

	"github.com/engram-go/engram/internal/atomicfile"
)

// hubClient downloads models into the cache that Python's huggingface_hub uses as well.
type hubClient struct {
	endpoint string // "" means the library's default
	cache    string
	token    string
	offline  bool
	progress func(file string, done, total int64)
}

// hubFromEnvironment reads the variables that Python's huggingface_hub reads.
func hubFromEnvironment() (*hubClient, error) {
	home := os.Getenv("HF_HOME")
	if home == "" {
		base := os.Getenv("XDG_CACHE_HOME")
		if base == "" {
			user, err := os.UserHomeDir()
			if err != nil && os.Getenv("HF_HUB_CACHE") == "" {
				return nil, &failure{
					err: fmt.Errorf("no cache folder: %w", err), kind: ErrHub, hint: "set HF_HOME to a folder for downloads",
				}
			}
			base = filepath.Join(user, ".cache")
		}
		home = filepath.Join(base, "huggingface")
	}
	h := &hubClient{endpoint: os.Getenv("HF_ENDPOINT"), cache: os.Getenv("HF_HUB_CACHE"), token: os.Getenv("HF_TOKEN")}
	if h.cache == "" {
		h.cache = filepath.Join(home, "hub")
	}
	if h.token == "" {
		path := os.Getenv("HF_TOKEN_PATH")
		if path == "" {
			path = filepath.Join(home, "token")
		}
		// Most users have no such file, and public models need none.
		if raw, err := os.ReadFile(path); err == nil {
			h.token = strings.TrimSpace(string(raw))
		}
	}
	switch strings.ToLower(os.Getenv("HF_HUB_OFFLINE")) {
	case "1", "on", "yes", "true":
		h.offline = true
	}
	return h, nil
}

// hubName is owner/model at a revision: a branch, a tag or a commit.
type hubName struct{ id, revision string }

func (n hubName) String() string { return n.id + "@" + n.revision }

// parseHubName reads owner/model[@revision]; false if s is something else.
func parseHubName(s string) (hubName, bool) {
	id, revision, given := strings.Cut(s, "@")
	if !given {
		revision = "main"
	}
	owner, model, ok := strings.Cut(id, "/")
	return hubName{id, revision}, ok && hubWord(owner) && hubWord(model) && hubRevision(revision)
}

func hubWord(s string) bool {
	ok, _ := regexp.MatchString(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$`, s)
	return ok && !strings.Contains(s, "..") && !strings.Contains(s, "--")
}

// hubRevision keeps revisions inside the cache folder, where they become file names.
func hubRevision(s string) bool {
	ok, _ := regexp.MatchString(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$`, s)
	return ok && !strings.Contains(s, "..")
}

// fetch gives the folder with the files of a model. A revision that is in the cache in full is used without asking the
// hub, unless refresh is set.
func (h *hubClient) fetch(ctx context.Context, name hubName, refresh bool) (string, error) {
	if !refresh || h.offline {
		if dir := h.cached(name, !h.offline); dir != "" {
			return dir, nil
		}
	}
	if h.offline {
		return "", &failure{
			err:  fmt.Errorf("load %s: it is not in the cache %s, and HF_HUB_OFFLINE is set", name, h.cache),
			kind: ErrNoModel, hint: "unset HF_HUB_OFFLINE once to download it",
		}
	}
	dir, err := h.download(ctx, name)
	if err != nil {
		return "", h.explain(ctx, name, err)
	}
	return dir, nil
}

// download fetches what is missing of a model, small files first: a family that is not known, or a model without
// safetensors, is refused before gigabytes are fetched.
func (h *hubClient) download(ctx context.Context, name hubName) (string, error) {
	restore := h.keepInfo(name)
	repo := hub.New(name.id).WithAuth(h.token).WithCacheDir(h.cache).WithRevision(url.PathEscape(name.revision))
	if h.endpoint != "" {
		repo = repo.WithEndpoint(strings.TrimSuffix(h.endpoint, "/"))
	}
	repo.Verbosity = 0
	if err := await(ctx, func() error { return repo.DownloadInfo(true) }); err != nil {
		restore()
		return "", err
	}
	info := repo.Info()
	if !isCommit(info.CommitHash) {
		restore()
		return "", fmt.Errorf("the hub's answer names no commit: %q", info.CommitHash)
	}
	d := &download{h: h, repo: repo, sizes: map[string]int64{}, dir: h.snapshot(name, info.CommitHash)}
	for _, file := range info.Siblings {
		d.sizes[file.Name] = file.Size
	}
	if err := d.all(ctx); err != nil {
		return "", err
	}
	return d.dir, h.writeRef(ctx, name, info.CommitHash)
}

// download is one model on its way into the cache.
type download struct {
	h     *hubClient
	repo  *hub.Repo
	sizes map[string]int64 // every file of the repository; 0 where the hub does not say
	dir   string
}

func (d *download) all(ctx context.Context) error {
	small, err := smallFiles(d.sizes)
	if err != nil {
		return err
	}
	for _, file := range small {
		if err := d.file(ctx, file); err != nil {
			return err
		}
	}
	f := dirFolder(d.dir)
	raw, err := readFile(f, configFile, maxConfig)
	if err != nil {
		return err
	}
	if _, _, err := translate(raw, nil); err != nil {
		return inConfig(f, err)
	}
	shards := []string{modelFile}
	if _, single := d.sizes[modelFile]; !single {
		if shards, _, err = weightFiles(f); err != nil {
			return err
		}
	}
	for _, shard := range shards {
		if _, ok := d.sizes[shard]; !ok {
			return bad("load %s: the repository has no %s, although %s names it", d.repo.ID, shard, indexFile)
		}
		if err := d.file(ctx, shard); err != nil {
			return err
		}
	}
	return nil
}

// smallFiles lists the files wanted beside the weights.
func smallFiles(sizes map[string]int64) ([]string, error) {
	_, single := sizes[modelFile]
	_, sharded := sizes[indexFile]
	if !single && !sharded {
		for _, name := range []string{"pytorch_model.bin", "pytorch_model.bin.index.json"} {
			if _, ok := sizes[name]; ok {
				return nil, pickled(name)
			}
		}
		return nil, bad("the repository has neither %s nor %s", modelFile, indexFile)
	}
	if _, ok := sizes[configFile]; !ok {
		return nil, bad("the repository has no %s", configFile)
	}
	small := []string{configFile}
	if !single {
		small = append(small, indexFile)
	}
	for _, name := range sideFiles() {
		if _, ok := sizes[name]; ok {
			small = append(small, name)
		}
	}
	return small, nil
}

// file downloads one file. Files go one after the other: within one call the library counts them without a lock.
func (d *download) file(ctx context.Context, name string) error {
	stop := d.watch(name)
	err := await(ctx, func() error {
		_, err := d.repo.DownloadFilesCtx(ctx, name)
		return err
	})
	stop()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return d.verify(name)
}

// verify removes a file that is not all there: the library reports success when a connection breaks in the middle.
func (d *download) verify(name string) error {
	path := filepath.Join(d.dir, name)
	info, err := os.Stat(path)
	if err != nil {
		_ = os.Remove(path) // a link to nothing
		return fmt.Errorf("%s: the download broke off: %w", name, io.ErrUnexpectedEOF)
	}
	if want := d.sizes[name]; want > 0 && info.Size() != want {
		if blob, err := filepath.EvalSymlinks(path); err == nil {
			_ = os.Remove(blob)
		}
		_ = os.Remove(path)
		return fmt.Errorf("%s: got %d of %d bytes: %w", name, info.Size(), want, io.ErrUnexpectedEOF)
	}
	return nil
}

// watch reports how the file grows, until the function it returns is called.
func (d *download) watch(name string) (stop func()) {
	if d.h.progress == nil {
		return func() {}
	}
	total := d.sizes[name]
	d.h.progress(name, 0, total)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				d.h.progress(name, partSize(filepath.Join(d.dir, "..", "..", "blobs")), total)
			}
		}
	}()
	return func() {
		close(done)
		<-ended
		d.h.progress(name, total, total)
	}
}

func partSize(blobs string) (size int64) {
	parts, _ := filepath.Glob(filepath.Join(blobs, "*.part"))
	for _, part := range parts {
		if info, err := os.Stat(part); err == nil {
			size += info.Size()
		}
	}
	return size
}

// await runs do, some of whose requests know no context. When ctx ends it gives do a moment to clean up, and then
// leaves it to end by itself: what it still writes has a temporary name.
func await(ctx context.Context, do func() error) error {
	result := make(chan error, 1)
	go func() { result <- do() }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(500 * time.Millisecond)
	defer grace.Stop()
	select {
	case <-result:
	case <-grace.C:
	}
	return ctx.Err()
}

// explain adds what the user can do. The library has no error values; the status stands in its messages.
func (h *hubClient) explain(ctx context.Context, name hubName, err error) error {
	if errors.Is(err, ErrCheckpoint) {
		return &failure{err: fmt.Errorf("download %s: %w", name, err), kind: ErrCheckpoint, hint: Hint(err)}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("download %s: %w", name, ctx.Err())
	}
	f := &failure{err: fmt.Errorf("download %s: %w", name, err), kind: ErrHub}
	status := ""
	if m := regexp.MustCompile(`(?:status code |message: ")(\d{3})`).FindStringSubmatch(err.Error()); m != nil {
		status = m[1]
	}
	var network *url.Error
	switch {
	case status == "401":
		f.hint = "check the name; for a private or gated model set HF_TOKEN to an access token"
		if h.token != "" {
			f.hint = "check the name, and whether the access token may read the model"
		}
	case status == "403":
		f.hint = "accept the model's terms on its page, and set HF_TOKEN to an access token of that account"
	case status == "404":
		f.kind, f.hint = ErrNoModel, "check the owner, the model and the revision"
	case strings.HasPrefix(status, "5") || status == "429":
		f.hint = "the hub is busy; try again later"
	case errors.Is(err, io.ErrUnexpectedEOF):
		f.hint = "try again: files that are complete are kept"
	case errors.As(err, &network):
		f.err = fmt.Errorf("download %s: %w", name, network) // what stands around it repeats the address twice
		f.hint = "check the network and HF_ENDPOINT; a model that was downloaded before works without"
	}
	return f
}

func (h *hubClient) writeRef(ctx context.Context, name hubName, commit string) error {
	if isCommit(name.revision) {
		return nil
	}
	path := h.refPath(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(ctx, path, func(w io.Writer) error {
		_, err := io.WriteString(w, commit)
		return err
	}, atomicfile.Options{Replace: true})
}
