package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func open(t *testing.T, path, identity string) *Journal {
	t.Helper()
	j, err := Open(path, []byte(identity))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func add(t *testing.T, j *Journal, records ...string) {
	t.Helper()
	for _, r := range records {
		if err := j.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantRecords(t *testing.T, j *Journal, want ...string) {
	t.Helper()
	if j.Len() != len(want) {
		t.Fatalf("%d records, want %q", j.Len(), want)
	}
	for i, w := range want {
		if got, err := j.Record(i); err != nil || string(got) != w {
			t.Errorf("record %d is %q (%v), want %q", i, got, err, w)
		}
	}
}

func closeIt(t *testing.T, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRecordsStay: what was added is there when the job goes on, empty records too; Remove ends it.
func TestRecordsStay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := open(t, path, "job")
	wantRecords(t, j)
	add(t, j, "one", "", "three")
	wantRecords(t, j, "one", "", "three")
	closeIt(t, j)
	j = open(t, path, "job")
	add(t, j, "four")
	wantRecords(t, j, "one", "", "three", "four")
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

// TestEveryCut: a journal that was cut off anywhere keeps the whole records before the cut, and takes new ones.
func TestEveryCut(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole")
	j := open(t, whole, "job")
	ends := []int64{j.size}
	for _, r := range []string{"one", "two", "three"} {
		add(t, j, r)
		ends = append(ends, j.size)
	}
	closeIt(t, j)
	data, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(data) {
		path := filepath.Join(dir, "cut")
		if err := os.WriteFile(path, data[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		kept := 0
		for kept < 3 && int64(n) >= ends[kept+1] {
			kept++
		}
		j := open(t, path, "job")
		want := []string{"one", "two", "three"}[:kept:kept]
		wantRecords(t, j, want...)
		add(t, j, "new")
		closeIt(t, j)
		j = open(t, path, "job")
		wantRecords(t, j, append(want, "new")...)
		closeIt(t, j)
	}
}

// TestSpoiltRecord: a record with a wrong byte ends the journal.
func TestSpoiltRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := open(t, path, "job")
	add(t, j, "one", "two", "three")
	at := j.records[1].from
	closeIt(t, j)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 1
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	j = open(t, path, "job")
	defer closeIt(t, j)
	wantRecords(t, j, "one")
}

// TestOthersAreLeftAlone: a journal of another job and a file that is none are refused and not touched.
func TestOthersAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "j")
	j := open(t, path, "job")
	add(t, j, "one")
	closeIt(t, j)
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("engram is a program"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, text} {
		before, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(p, []byte("another")); !errors.Is(err, ErrOther) {
			t.Errorf("%s: got %v", p, err)
		}
		if after, err := os.ReadFile(p); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s was changed (%v)", p, err)
		}
	}
	if _, err := Open(dir, []byte("job")); err == nil {
		t.Error("a folder was opened")
	}
	if _, err := Open(filepath.Join(dir, "no", "such"), []byte("job")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// TestTwoWriters: the second of two processes on one journal is told before it spoils anything.
func TestTwoWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	a := open(t, path, "job")
	b := open(t, path, "job")
	add(t, a, "one")
	if err := b.Append([]byte("two")); err == nil {
		t.Error("both wrote")
	}
	closeIt(t, b)
	wantRecords(t, a, "one")
	closeIt(t, a)
}
