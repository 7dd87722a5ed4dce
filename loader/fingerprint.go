package loader

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"slices"
	"strconv"

	"github.com/engram-go/engram/transformer"
)

const (
	sampleBlocks = 8
	sampleBlock  = 512
)

// FingerprintOptions say what to hash. The zero value samples the weights of the files.
type FingerprintOptions struct {
	// Full hashes every byte of every tensor. The result differs from the sampled one.
	Full bool
	// Replace has tensors that stand in for those of the files, as in SaveOptions.
	Replace map[string]transformer.RawTensor
}

// Fingerprint identifies what a checkpoint computes, in 64 hexadecimal digits. It is the SHA-256 of
//
//	"engram fingerprint 1 sampled\n" or "engram fingerprint 1 full\n"
//	the configuration, "\n"
//	for each tensor that fills a slot, ordered by name:
//	    name, "\t", dtype (F32, F16, BF16), "\t", dimensions joined by ",", "\n"
//	    the SHA-256 of its sample (32 bytes)
//
// The configuration is transformer.Config, that is, what the model computes and not how config.json spells it, as JSON
// with sorted keys, settings at their zero value left out and numbers rounded to 6 significant digits. Names are the
// family's usual ones, also where the files leave a prefix out. So the spellings of transformers 4 and 5, shards, extra
// buffers, the token names of a tokenizer and notes in config.json do not change a fingerprint; a dtype does.
//
// The sample of a tensor is all of it up to 4096 bytes, and otherwise 8 blocks of 512 bytes, block i starting at byte
// ⌊i·(size−512)/7⌋. A change of a few elements of a large tensor can escape it; one to a whole matrix, as editing
// methods make, cannot in practice. Full is for when that matters.
func (c *Checkpoint) Fingerprint(ctx context.Context, opts FingerprintOptions) (string, error) {
	config, err := canonicalConfig(c.Config)
	if err != nil {
		return "", fmt.Errorf("fingerprint %s: %w", c.Name, err)
	}
	names := c.tensorNames()
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(c.canonical[a], c.canonical[b]) })
	records := make([][]byte, len(names))
	err = forEach(ctx, len(names), func(i int) (err error) {
		records[i], err = c.fingerprintTensor(ctx, names[i], opts)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("fingerprint %s: %w", c.Name, err)
	}
	kind := "sampled"
	if opts.Full {
		kind = "full"
	}
	all := sha256.New()
	fmt.Fprintf(all, "engram fingerprint 1 %s\n%s\n", kind, config)
	for _, record := range records {
		all.Write(record)
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}

func (c *Checkpoint) fingerprintTensor(ctx context.Context, name string, opts FingerprintOptions) ([]byte, error) {
	e := c.entry(name)
	record := fmt.Appendf(nil, "%s\t%s\t", c.canonical[name], e.DType)
	for i, d := range e.Shape {
		if i > 0 {
			record = append(record, ',')
		}
		record = strconv.AppendInt(record, int64(d), 10)
	}
	record = append(record, '\n')
	h := sha256.New()
	if _, replaced := opts.Replace[name]; !replaced && !opts.Full {
		if err := c.sample(h, name, e.Bytes()); err != nil {
			return nil, err
		}
		return h.Sum(record), nil
	}
	data, err := c.contents(name, opts.Replace)
	if err != nil {
		return nil, err
	}
	defer c.Release(name)
	if !opts.Full {
		hashSample(h, int64(len(data)), func(at, n int64) []byte { return data[at : at+n] })
		return h.Sum(record), nil
	}
	for from := 0; from < len(data); from += scanChunk {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h.Write(data[from:min(from+scanChunk, len(data))])
	}
	return h.Sum(record), nil
}

// sample hashes the sample of a tensor of the files.
func (c *Checkpoint) sample(h hash.Hash, name string, size int64) (err error) {
	buffer := make([]byte, sampleBlocks*sampleBlock)
	hashSample(h, size, func(at, n int64) []byte {
		if err == nil {
			err = c.where[name].ReadTensorAt(name, buffer[:n], at)
		}
		return buffer[:n]
	})
	if err != nil {
		return bad("load %w", err)
	}
	return nil
}

func hashSample(h hash.Hash, size int64, piece func(at, n int64) []byte) {
	if size <= sampleBlocks*sampleBlock {
		h.Write(piece(0, size))
		return
	}
	for i := range int64(sampleBlocks) {
		h.Write(piece(i*(size-sampleBlock)/(sampleBlocks-1), sampleBlock))
	}
}

// contents is a tensor's bytes in the files' dtype, or those of its replacement.
func (c *Checkpoint) contents(name string, replace map[string]transformer.RawTensor) ([]byte, error) {
	stored, err := c.Tensor(name)
	if err != nil {
		return nil, err
	}
	other, ok := replace[name]
	if !ok {
		return stored.Data, nil
	}
	if !slices.Equal(other.Shape, stored.Shape) {
		return nil, fmt.Errorf("tensor %q: want shape %v, got %v", name, stored.Shape, other.Shape)
	}
	data, err := convert(other, stored.DType)
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", name, err)
	}
	return data, nil
}

// canonicalConfig is the JSON of a configuration with sorted keys and without settings at their zero value, so that a
// setting that a later version adds does not change the fingerprints of models without it. Frequencies and slopes come
// from functions whose last bit differs between processors; rounding makes them equal.
func canonicalConfig(config *transformer.Config) ([]byte, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	return json.Marshal(canonicalValue(tree))
}

// canonicalValue is nil for a zero value. Elements of lists are kept: their places count.
func canonicalValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if value = canonicalValue(value); value == nil {
				delete(v, key)
			} else {
				v[key] = value
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i, value := range v {
			v[i] = canonicalValue(value)
		}
		if len(v) == 0 {
			return nil
		}
	case json.Number:
		return canonicalNumber(v)
	case string:
		if v == "" {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}

func canonicalNumber(n json.Number) any {
	if i, err := n.Int64(); err == nil {
		if i == 0 {
			return nil
		}
		return i
	}
	f, err := n.Float64()
	if err != nil || f == 0 {
		return nil
	}
	return json.Number(strconv.FormatFloat(f, 'g', 6, 64))
}
