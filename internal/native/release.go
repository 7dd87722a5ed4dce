package native

import (
	"context"
	"fmt"
	"net/http"
)

// release takes one file out of an archive of a GitHub release.
func (o *Options) release(
	ctx context.Context, repo, tag, asset string, match func(base string) bool, target string,
) error {
	url := fmt.Sprintf("%s/%s/releases/download/%s/%s", o.Releases, repo, tag, asset)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := o.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, resp.Status)
	}
	if err := untar(ctx, o.Progress.Reader(resp.Body, asset, resp.ContentLength), match, target); err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	return nil
}
