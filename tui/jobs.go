package tui

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	tea "github.com/charmbracelet/bubbletea"
)

// Progress tells how far a job is, and may hand over what there is of its result. It may be called from any goroutine.
type Progress func(done, total int, part any)

// running is a job that has been started and not ended.
type running struct {
	id          int
	slot, title string
	cancel      context.CancelFunc
	yields      bool
	done, total int
	since       time.Time
	finish      func(value any, err error) tea.Cmd
	part        func(any)
}

// jobs are the running ones, by the order of their start.
type jobs struct {
	next int
	list []*running
}

// jobDone and jobProgress are messages of jobs.
type jobDone struct {
	id    int
	value any
	err   error
}

type jobProgress struct {
	id, done, total int
	part            any
}

// work describes a job: the slot it takes, its title in lists, what it does, and what becomes of its result. An empty
// title keeps it out of messages. Part, which may be nil, is given what Progress hands over. A job that is alone
// changes weights: it waits until no job with a title is running, and those started behind it wait for its end, so that
// none sees weights change between two runs of the model. Those that yield, because they go on where they were stopped,
// are stopped for it.
type work[T any] struct {
	slot, title string
	alone       bool
	yields      bool
	run         func(ctx context.Context, p Progress) (T, error)
	done        func(value T, err error) tea.Cmd
	part        func(any)
}

// start runs work in a command. A job that is still running in the slot is cancelled and its result dropped.
func start[T any](a *App, w work[T]) tea.Cmd {
	a.stop(w.slot)
	if w.alone {
		for _, j := range slices.Clone(a.jobs.list) {
			if j.yields {
				a.stop(j.slot)
			}
		}
	}
	ctx, cancel := context.WithCancel(a.ctx)
	a.jobs.next++
	j := &running{id: a.jobs.next, slot: w.slot, title: w.title, cancel: cancel, since: a.now(), part: w.part}
	j.yields = w.yields
	j.finish = func(value any, err error) tea.Cmd {
		v, _ := value.(T) // nil where there was an error
		return w.done(v, err)
	}
	a.jobs.list = append(a.jobs.list, j)
	fake := a.fake
	return func() tea.Msg {
		defer cancel()
		switch {
		case w.alone:
			a.weights.Lock()
			defer a.weights.Unlock()
		case w.title != "":
			a.weights.RLock()
			defer a.weights.RUnlock()
		}
		if ctx.Err() != nil {
			return jobDone{j.id, nil, context.Cause(ctx)}
		}
		value, err := guarded(func() (any, error) {
			if fake != nil {
				if v, err := fake(w.slot); v != nil || err != nil {
					return v, err
				}
			}
			return w.run(ctx, a.reporter(j.id))
		})
		if err == nil && ctx.Err() != nil && a.ctx.Err() == nil {
			err = context.Cause(ctx)
		}
		return jobDone{j.id, value, err}
	}
}

// reportEvery is how often a job's progress is shown at most.
const reportEvery = 50 * time.Millisecond

// reporter sends progress now and then; parts of a result are never left out.
func (a *App) reporter(id int) Progress {
	var last atomic.Int64
	return func(done, total int, part any) {
		now := a.now().UnixNano()
		if part == nil && done != total && now-last.Load() < int64(reportEvery) {
			return
		}
		last.Store(now)
		if a.send != nil {
			a.send(jobProgress{id, done, total, part})
		}
	}
}

// panicError is a panic of an analysis.
type panicError struct {
	value any
	stack string
}

// Error says what happened; the log has where.
func (e *panicError) Error() string {
	if _, fault := e.value.(interface{ Addr() uintptr }); fault {
		return "a file that was open has changed: it is shorter than it was, or cannot be read any more"
	}
	return fmt.Sprintf("internal error: %v", e.value)
}

// guarded turns a panic into an error. Reading a mapped file that has become shorter is one as well.
func guarded[T any](f func() (T, error)) (value T, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, string(debug.Stack())}
		}
	}()
	return f()
}

// stop cancels the job of a slot, if one is running, and forgets it.
func (a *App) stop(slot string) bool {
	i := slices.IndexFunc(a.jobs.list, func(j *running) bool { return j.slot == slot })
	if i < 0 {
		return false
	}
	a.jobs.list[i].cancel()
	a.jobs.list = slices.Delete(a.jobs.list, i, i+1)
	return true
}

// busy reports whether a job is running in the slot.
func (a *App) busy(slot string) *running {
	for _, j := range a.jobs.list {
		if j.slot == slot {
			return j
		}
	}
	return nil
}

// finished takes a job's result.
func (a *App) finished(msg jobDone) tea.Cmd {
	i := slices.IndexFunc(a.jobs.list, func(j *running) bool { return j.id == msg.id })
	if i < 0 {
		return nil // cancelled or replaced
	}
	j := a.jobs.list[i]
	a.jobs.list = slices.Delete(a.jobs.list, i, i+1)
	var p *panicError
	switch {
	case msg.err == nil:
		if j.title != "" {
			a.note("%s: %s", j.title, a.now().Sub(j.since).Round(time.Millisecond))
		}
	case errors.Is(msg.err, context.Canceled):
		a.note("%s: stopped", j.title)
	case errors.As(msg.err, &p):
		a.Fail(p)
		a.note("%s", p.stack)
	default:
		a.Fail(msg.err)
	}
	return j.finish(msg.value, msg.err)
}

// progressed notes a job's progress.
func (a *App) progressed(msg jobProgress) {
	for _, j := range a.jobs.list {
		if j.id == msg.id {
			j.done, j.total = msg.done, msg.total
			if msg.part != nil && j.part != nil {
				j.part(msg.part)
			}
		}
	}
}

// describe is a running job in a few words.
func (j *running) describe() string {
	if j.total > 0 {
		return fmt.Sprintf("%s %d/%d", j.title, j.done, j.total)
	}
	return j.title + " …"
}
