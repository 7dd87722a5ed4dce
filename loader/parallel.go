package loader

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// forEach calls do for 0 … n−1 from as many goroutines as there are processors. It returns the error of the smallest
// index that has one, so that messages do not depend on timing; calls after that index may be left out.
func forEach(ctx context.Context, n int, do func(i int) error) error {
	errs := make([]error, n)
	var next, stop atomic.Int64
	stop.Store(int64(n))
	var wg sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= stop.Load() || ctx.Err() != nil {
					return
				}
				if errs[i] = do(int(i)); errs[i] != nil {
					lower(&stop, i)
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func lower(v *atomic.Int64, to int64) {
	for {
		old := v.Load()
		if old <= to || v.CompareAndSwap(old, to) {
			return
		}
	}
}
