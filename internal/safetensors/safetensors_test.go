package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// file is the bytes of a file with the given header text and n bytes of data.
func file(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

func TestReadsReferenceFile(t *testing.T) {
	f, err := Open("testdata/reference.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Metadata["format"] != "pt" || len(f.Entries) != 14 {
		t.Errorf("metadata %v, %d tensors", f.Metadata, len(f.Entries))
	}
	b, err := f.Tensor("b")
	if err != nil {
		t.Fatal(err)
	}
	got := []float32{
		math.Float32frombits(binary.LittleEndian.Uint32(b.Data)),
		math.Float32frombits(binary.LittleEndian.Uint32(b.Data[4:])),
	}
	if b.DType != F32 || !slices.Equal(b.Shape, []int{2}) || !slices.Equal(got, []float32{1.5, -2}) {
		t.Errorf("b is %s%v %v", b.DType, b.Shape, got)
	}
	z, err := f.Tensor("z")
	if err != nil || !slices.Equal(z.Shape, []int{0, 4}) || len(z.Data) != 0 {
		t.Errorf("z is %v %v, %v", z.Shape, z.Data, err)
	}
	s, err := f.Tensor("s")
	if err != nil || len(s.Shape) != 0 || len(s.Data) != 4 {
		t.Errorf("s is %v %v, %v", s.Shape, s.Data, err)
	}
	if _, err := f.Tensor("nothing"); !errors.Is(err, ErrNoTensor) {
		t.Errorf("absent tensor: %v", err)
	}
}

// The reference implementation wrote the file; writing its tensors again in any order gives the same bytes.
func TestWriteEqualsReference(t *testing.T) {
	want, err := os.ReadFile("testdata/reference.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	f, err := New("reference", want)
	if err != nil {
		t.Fatal(err)
	}
	var items []Item
	for _, e := range f.Entries {
		tensor, err := f.Tensor(e.Name)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, tensor.Item())
	}
	for range 2 {
		var got bytes.Buffer
		if err := Write(&got, items, f.Metadata); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("got  %q\nwant %q", got.Bytes(), want)
		}
		slices.Reverse(items)
	}
}

func TestReadsReferenceCheckpoints(t *testing.T) {
	paths, err := filepath.Glob("../../../shared/goldens/*/*.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Skip("../shared/goldens is not beside this checkout")
	}
	for _, path := range paths {
		f, err := Open(path)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, e := range f.Entries {
			if tensor, err := f.Tensor(e.Name); err != nil || int64(len(tensor.Data)) != e.Bytes() {
				t.Errorf("%s: %q: %d bytes, %v", path, e.Name, len(tensor.Data), err)
			}
			f.Release(e.Name)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Released bytes read the same afterwards: they come back from the file.
func TestRelease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	data := bytes.Repeat([]byte{1, 2, 3, 4}, 50_000)
	var out bytes.Buffer
	items := []Item{
		Tensor{"a", U8, []int{10}, data[:10]}.Item(),
		Tensor{"b", U8, []int{len(data)}, data}.Item(),
	}
	if err := Write(&out, items, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b, err := f.Tensor("b")
		if err != nil || !bytes.Equal(b.Data, data) {
			t.Fatalf("b differs, %v", err)
		}
		f.Release("b")
		f.Release("nothing")
		piece := make([]byte, 5)
		if err := f.ReadTensorAt("b", piece, 99_999); err != nil || !bytes.Equal(piece, data[99_999:100_004]) {
			t.Errorf("piece %v, %v", piece, err)
		}
	}
	for _, offset := range []int64{-1, int64(len(data)) - 4} {
		if err := f.ReadTensorAt("b", make([]byte, 5), offset); err == nil {
			t.Errorf("read at %d", offset)
		}
	}
	if err := f.ReadTensorAt("nothing", nil, 0); !errors.Is(err, ErrNoTensor) {
		t.Errorf("absent tensor: %v", err)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := f.Tensor("a"); !errors.Is(err, ErrNoTensor) {
		t.Errorf("after Close: %v", err)
	}
}

// Every malformed file is refused with a message that says what is wrong and with which tensor.
func TestMalformed(t *testing.T) {
	long := binary.LittleEndian.AppendUint64(nil, MaxHeader+1)
	entry := func(dtype, shape, offsets string) []byte {
		return file(fmt.Sprintf(`{"w":{"dtype":%q,"shape":%s,"data_offsets":%s}}`, dtype, shape, offsets), 8)
	}
	two := func(a, b string) []byte {
		return file(fmt.Sprintf(`{"v":{"dtype":"F32","shape":[1],"data_offsets":%s},`+
			`"w":{"dtype":"F32","shape":[1],"data_offsets":%s}}`, a, b), 8)
	}
	const ok = `{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "0 bytes are too few"},
		{"short", []byte{1, 2}, "2 bytes are too few"},
		{"over the limit", append(long, make([]byte, 64)...), "header of 100000001 bytes is over the limit"},
		{"longer than the file", file("{}", 0)[:9], "header of 2 bytes is longer than the file of 9 bytes"},
		{"no header", file("", 0), "not a JSON object"},
		{"array", file("[]", 0), "not a JSON object"},
		{"leading space", file(" {}", 0), "not a JSON object"},
		{"cut JSON", file(`{"w":`, 0), "unexpected EOF"},
		{"not UTF-8", file("{\"\xff\":1}", 0), "not UTF-8"},
		{"after the object", file("{}{}", 0), "after the JSON object"},
		{"twice", file(`{"w":`+ok+`,"w":`+ok+`}`, 8), `key "w" twice`},
		{"key twice", file(`{"w":{"dtype":"F32","dtype":"F16"}}`, 8), `tensor "w": key "dtype" twice`},
		{"other case", file(`{"w":{"DType":"F32"}}`, 8), `tensor "w": unknown key "DType"`},
		{"missing key", file(`{"w":{"dtype":"F32"}}`, 8), `tensor "w": dtype, shape or data_offsets is missing`},
		{"not an entry", file(`{"w":3}`, 8), `tensor "w": want`},
		{"metadata", file(`{"__metadata__":{"a":1}}`, 0), "__metadata__: want a string"},
		{"dtype", entry("F4", "[2]", "[0,8]"), `tensor "w": unknown dtype "F4"`},
		{"dtype case", entry("f32", "[2]", "[0,8]"), `tensor "w": unknown dtype "f32"`},
		{"negative size", entry("F32", "[-2]", "[0,8]"), `tensor "w": -2 is not a size`},
		{"fraction", entry("F32", "[2.0]", "[0,8]"), `tensor "w": 2.0 is not a size`},
		{"exponent", entry("F32", "[2e0]", "[0,8]"), `tensor "w": 2e0 is not a size`},
		{"huge", entry("F32", "[99999999999999999999]", "[0,8]"), "is not a size"},
		{"product", entry("F32", "[4294967296,4294967296]", "[0,0]"), "too many elements"},
		{"hidden product", entry("F32", "[4294967296,4294967296,0]", "[0,0]"), "too many elements"},
		{"rank", entry("U8", "["+strings.Repeat("1,", 64)+"1]", "[0,1]"), "more than 64 numbers"},
		{"one offset", entry("F32", "[2]", "[0]"), `tensor "w": 1 data offsets`},
		{"backwards", entry("F32", "[2]", "[8,0]"), `tensor "w": data offsets 8, 0 run backwards`},
		{"size", entry("F32", "[3]", "[0,8]"), `tensor "w": F32[3] takes 12 bytes, data offsets hold 8`},
		{"beyond", entry("F32", "[4]", "[0,16]"), `tensor "w": ends at byte 16 of 8`},
		{"overlap", two("[0,4]", "[2,6]"), `tensor "w": overlaps "v"`},
		{"same bytes", two("[0,4]", "[0,4]"), `tensor "w": overlaps "v"`},
		{"hole", file(`{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8), `tensor "w": 4 unused bytes`},
		{"tail", file(`{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 8), "4 bytes after the last tensor"},
	} {
		_, err := New("dir/x.safetensors", test.data)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), test.want) ||
			!strings.HasPrefix(err.Error(), "open dir/x.safetensors: ") {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

func TestOpenRefusesOddFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrFormat) {
		t.Errorf("folder: %v", err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(empty); !errors.Is(err, ErrFormat) {
		t.Errorf("empty: %v", err)
	}
}

func TestEmptyFile(t *testing.T) {
	var out bytes.Buffer
	if err := Write(&out, nil, nil); err != nil {
		t.Fatal(err)
	}
	f, err := New("empty", out.Bytes())
	if err != nil || len(f.Entries) != 0 || len(f.RawHeader())%8 != 0 {
		t.Errorf("%v, %v", f, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	one := func(name string, d DType, shape ...int) Item {
		return Tensor{name, d, shape, []byte{1, 2, 3, 4}}.Item()
	}
	broken := one("w", F32, 1)
	broken.WriteData = func(io.Writer) error { return io.ErrClosedPipe }
	for _, test := range []struct {
		items []Item
		want  string
	}{
		{[]Item{one("w", "F4", 1)}, `tensor "w": unknown dtype "F4"`},
		{[]Item{one("w", F32, 2)}, `tensor "w": 4 bytes for F32[2], which takes 8`},
		{[]Item{one("w", F32, -1)}, `tensor "w": shape [-1] cannot be stored`},
		{[]Item{one("w", F32, 1), one("w", F32, 1)}, `tensor "w": the name is taken`},
		{[]Item{one("__metadata__", F32, 1)}, "the name is taken"},
		{[]Item{one("\xff", F32, 1)}, "not UTF-8"},
		{[]Item{broken}, `write tensor "w": io: read/write on closed pipe`},
	} {
		err := Write(io.Discard, test.items, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
}

// Whatever bytes come in, New gives an error or a file whose tensors cover its data exactly.
func FuzzNew(f *testing.F) {
	reference, err := os.ReadFile("testdata/reference.safetensors")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reference)
	f.Add(file(`{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8))
	f.Add(file(`{"w":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}} `, 0))
	f.Add(file(`{"__metadata__":{"a":"b"}}`, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := New("fuzz", data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		var total int64
		for _, e := range file.Entries {
			tensor, err := file.Tensor(e.Name)
			if err != nil || int64(len(tensor.Data)) != e.Bytes() {
				t.Fatalf("%q: %d bytes, %v", e.Name, len(tensor.Data), err)
			}
			total += e.Bytes()
		}
		if total+file.DataStart != int64(len(data)) {
			t.Fatalf("tensors hold %d of %d bytes", total, int64(len(data))-file.DataStart)
		}
	})
}

// BenchmarkOpen opens a file whose header names 20,000 tensors; the bound is reading as many bytes.
func BenchmarkOpen(b *testing.B) {
	var items []Item
	for i := range 20_000 {
		name := fmt.Sprintf("model.layers.%d.mlp.experts.%d.gate_proj.weight", i/400, i%400)
		items = append(items, Tensor{name, BF16, []int{1, 1}, []byte{0, 0}}.Item())
	}
	var out bytes.Buffer
	if err := Write(&out, items, nil); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(out.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New("bench", out.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}
