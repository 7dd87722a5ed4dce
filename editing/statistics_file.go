package editing

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"
	"strings"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
)

// Names in a statistics file.
const (
	momentTensor     = "second_moment"
	factorTensor     = "factor"
	statisticsSchema = "engram.statistics"
	factorSchema     = "engram.statistics.factor"
	// factorSuffix makes the name of the file that keeps the factor, beside the statistics.
	factorSuffix = ".factor"
)

// Save writes the statistics as a safetensors file: second_moment [m,m] float32 and, in the metadata, what
// StatisticsInfo holds. The file is there whole or not at all; an existing one is an error that wraps fs.ErrExist
// unless replace is set.
func (s *Statistics) Save(ctx context.Context, path string, replace bool) error {
	if s.IsIdentity() {
		return fmt.Errorf("%w: the identity needs no file", ErrStatistics)
	}
	item := safetensors.Item{
		Name: momentTensor, DType: safetensors.F32, Shape: []int{s.Size, s.Size},
		WriteData: func(w io.Writer) error { return writeFloats(w, s.Moment) },
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, []safetensors.Item{item}, s.metadata()) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

func (s *Statistics) metadata() map[string]string {
	shards := ""
	if s.Of > 0 {
		shards = strings.Trim(strings.ReplaceAll(fmt.Sprint(s.Shards), " ", ","), "[]")
	}
	meta := map[string]string{
		"schema": statisticsSchema, "schema_version": "1",
		"layer": strconv.Itoa(s.Layer), "count": strconv.FormatInt(s.Count, 10),
		"documents": strconv.FormatInt(s.Documents, 10), "tokens": s.Tokens, "window": strconv.Itoa(s.Window),
		"shards": shards, "of": strconv.Itoa(s.Of),
		"corpus": s.Corpus, "corpus_sha256": s.CorpusHash, "model": s.Model, "fingerprint": s.Fingerprint,
	}
	if s.Interventions != "" {
		meta["interventions"] = s.Interventions
	}
	return meta
}

// LoadStatistics reads a file that Save wrote and, where there is one that belongs to it, the factor beside it. Errors
// about what is in the file wrap ErrStatistics.
func LoadStatistics(path string) (*Statistics, error) {
	f, err := safetensors.Open(path)
	if errors.Is(err, safetensors.ErrFormat) {
		return nil, badStatistics("engram stats collect makes such files", "%v", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := readStatistics(f)
	if err != nil {
		return nil, err
	}
	if err := s.loadFactor(path + factorSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return s, nil
}

func readStatistics(f *safetensors.File) (*Statistics, error) {
	bad := func(format string, args ...any) error {
		return badStatistics("engram stats collect makes such files", "%s: %s", f.Path(), fmt.Sprintf(format, args...))
	}
	x, err := f.Tensor(momentTensor)
	if err != nil || f.Metadata["schema"] != statisticsSchema {
		return nil, bad("not a file of key statistics")
	}
	s := &Statistics{StatisticsInfo: StatisticsInfo{
		Tokens: f.Metadata["tokens"], Corpus: f.Metadata["corpus"], CorpusHash: f.Metadata["corpus_sha256"],
		Model: f.Metadata["model"], Fingerprint: f.Metadata["fingerprint"], Interventions: f.Metadata["interventions"],
	}}
	count, err1 := strconv.ParseInt(f.Metadata["count"], 10, 64)
	layer, err2 := strconv.Atoi(f.Metadata["layer"])
	if err := errors.Join(err1, err2); err != nil || count <= 0 || layer < 0 {
		return nil, bad("layer %q, count %q", f.Metadata["layer"], f.Metadata["count"])
	}
	s.Layer, s.Count = layer, count
	s.Documents, _ = strconv.ParseInt(f.Metadata["documents"], 10, 64) // told to people only
	s.Window, _ = strconv.Atoi(f.Metadata["window"])
	if s.Of, _ = strconv.Atoi(f.Metadata["of"]); s.Of > 0 {
		for _, text := range strings.Split(f.Metadata["shards"], ",") {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > s.Of {
				return nil, bad("shards %q of %d", f.Metadata["shards"], s.Of)
			}
			s.Shards = append(s.Shards, n)
		}
	}
	if len(x.Shape) != 2 || x.Shape[0] != x.Shape[1] || x.Shape[0] == 0 || x.DType != safetensors.F32 {
		return nil, bad("%s is %s%v, not float32 [m,m]", momentTensor, x.DType, x.Shape)
	}
	s.Size, s.Moment = x.Shape[0], readFloats(x.Data)
	return s, s.checkMoment(f.Path())
}

// checkMoment refuses what cannot be a second moment.
func (s *Statistics) checkMoment(path string) error {
	n, largest := s.Size, 0.0
	for _, v := range s.Moment {
		if largest = max(largest, math.Abs(float64(v))); math.IsNaN(largest) || math.IsInf(largest, 0) {
			return badStatistics("collect them again", "%s: not all numbers are finite", path)
		}
	}
	for i := range n {
		if s.Moment[i*n+i] < 0 {
			return badStatistics("collect them again", "%s: the mean square of memory %d is negative", path, i)
		}
		for j := range i {
			if math.Abs(float64(s.Moment[i*n+j]-s.Moment[j*n+i])) > 1e-4*largest {
				return badStatistics("collect them again", "%s: entries (%d,%d) and (%d,%d) differ", path, i, j, j, i)
			}
		}
	}
	return nil
}

// SaveFactor keeps the factor beside the file of the statistics, as PATH.factor, so that nobody computes it again.
func (s *Statistics) SaveFactor(ctx context.Context, path string) error {
	u, err := s.Factor()
	if err != nil {
		return err
	}
	n := s.Size
	item := safetensors.Item{
		Name: factorTensor, DType: safetensors.F64, Shape: []int{n * (n + 1) / 2},
		WriteData: func(w io.Writer) error {
			row := make([]byte, 0, 8*n)
			for i := range n {
				row = row[:0]
				for _, v := range u.Data[i*u.Stride+i : i*u.Stride+n] {
					row = binary.LittleEndian.AppendUint64(row, math.Float64bits(v))
				}
				if _, err := w.Write(row); err != nil {
					return err
				}
			}
			return nil
		},
	}
	meta := map[string]string{
		"schema": factorSchema, "schema_version": "1", "moment_sha256": s.momentHash(),
		"ridge": strconv.FormatFloat(s.Ridge, 'g', -1, 64),
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, []safetensors.Item{item}, meta) }
	return atomicfile.Write(ctx, path+factorSuffix, fill, atomicfile.Options{Replace: true})
}

// loadFactor takes a factor from a file if it belongs to these statistics.
func (s *Statistics) loadFactor(path string) error {
	f, err := safetensors.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStatistics, err)
	}
	defer f.Close()
	n := s.Size
	x, err := f.Tensor(factorTensor)
	if err != nil || f.Metadata["schema"] != factorSchema || f.Metadata["moment_sha256"] != s.momentHash() ||
		x.DType != safetensors.F64 || len(x.Data) != 8*n*(n+1)/2 {
		return nil // of other statistics: Factor computes it
	}
	ridge, err := strconv.ParseFloat(f.Metadata["ridge"], 64)
	if err != nil || !(ridge >= 0) {
		return nil
	}
	u := blas64.Triangular{Uplo: blas.Upper, Diag: blas.NonUnit, N: n, Stride: n, Data: make([]float64, n*n)}
	at := 0
	for i := range n {
		for j := i; j < n; j++ {
			u.Data[i*n+j] = math.Float64frombits(binary.LittleEndian.Uint64(x.Data[at:]))
			at += 8
		}
	}
	s.setFactor(u, ridge) // C is factored anew where it is of no use
	return nil
}

// momentHash is the SHA-256 of the second moment's bytes.
func (s *Statistics) momentHash() string {
	h := sha256.New()
	_ = writeFloats(h, s.Moment) // a hash takes everything
	return hex.EncodeToString(h.Sum(nil))
}

// writeFloats writes numbers as float32, little-endian.
func writeFloats(w io.Writer, data []float32) error {
	b := bufio.NewWriterSize(w, 1<<18)
	var word [4]byte
	for _, v := range data {
		binary.LittleEndian.PutUint32(word[:], math.Float32bits(v))
		if _, err := b.Write(word[:]); err != nil {
			return err
		}
	}
	return b.Flush()
}

func readFloats(data []byte) []float32 {
	out := make([]float32, len(data)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return out
}
