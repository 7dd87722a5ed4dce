package loader

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/engram-go/engram/transformer"
)

// ulps is how many float32 lie between two positive numbers.
func ulps(a, b float32) int {
	return int(math.Abs(float64(int64(math.Float32bits(a)) - int64(math.Float32bits(b)))))
}

// TestRotary: frequencies are transformers' to the last place, scales to 1e-12.
func TestRotary(t *testing.T) {
	var cases []struct {
		Config  json.RawMessage `json:"config"`
		Scale   float64         `json:"scale"`
		InvFreq []float32       `json:"inv_freq"`
	}
	if err := json.Unmarshal(read(t, "testdata/rope.json"), &cases); err != nil {
		t.Fatal(err)
	}
	worst := 0
	for _, want := range cases {
		c, _, err := translate(want.Config, nil)
		if err != nil {
			t.Errorf("%s: %v", want.Config, err)
			continue
		}
		got := c.Rotaries[0]
		if got.Dims != 2*len(want.InvFreq) || len(got.InvFreq) != len(want.InvFreq) {
			t.Fatalf("%s: %d dimensions, want %d", want.Config, got.Dims, 2*len(want.InvFreq))
		}
		for i, f := range got.InvFreq {
			d := ulps(f, want.InvFreq[i])
			worst = max(worst, d)
			if d > 1 {
				t.Errorf("%s: frequency %d is %g, want %g (%d places off)", want.Config, i, f, want.InvFreq[i], d)
			}
		}
		scale := got.Scale
		if scale == 0 {
			scale = 1
		}
		if math.Abs(scale-want.Scale) > 1e-12 {
			t.Errorf("%s: scale %v, want %v", want.Config, scale, want.Scale)
		}
	}
	t.Logf("%d settings, largest difference %d units in the last place", len(cases), worst)
}

// TestALiBi: slopes are transformers' for head counts that are and are not powers of two, Falcon's rounded to bfloat16.
func TestALiBi(t *testing.T) {
	var cases []struct {
		Heads         int
		Bloom, Falcon []float32
	}
	if err := json.Unmarshal(read(t, "testdata/alibi.json"), &cases); err != nil {
		t.Fatal(err)
	}
	for _, want := range cases {
		slopes := alibiSlopes(want.Heads)
		if len(slopes) != want.Heads {
			t.Fatalf("%d slopes for %d heads", len(slopes), want.Heads)
		}
		for h, s := range slopes {
			if ulps(s, want.Bloom[h]) > 1 {
				t.Errorf("%d heads: slope %d is %g, want %g", want.Heads, h, s, want.Bloom[h])
			}
			if r := bfloat16(s); r != want.Falcon[h] {
				t.Errorf("%d heads: rounded slope %d is %g, want %g", want.Heads, h, r, want.Falcon[h])
			}
		}
	}
}

// TestBFloat16: rounding is to nearest, ties to even.
func TestBFloat16(t *testing.T) {
	for in, want := range map[uint32]uint32{
		0x3f80_0000: 0x3f80_0000,
		0x3f80_7fff: 0x3f80_0000,
		0x3f80_8000: 0x3f80_0000, // a tie, down to even
		0x3f81_8000: 0x3f82_0000, // a tie, up to even
		0x3f80_8001: 0x3f81_0000,
		0xbf80_ffff: 0xbf81_0000,
	} {
		if got := math.Float32bits(bfloat16(math.Float32frombits(in))); got != want {
			t.Errorf("%08x rounds to %08x, want %08x", in, got, want)
		}
	}
}

// TestRopeSpellings: settings before and after transformers 5 mean the same wherever they may stand.
func TestRopeSpellings(t *testing.T) {
	for _, pair := range [][2]string{
		{
			`{"model_type":"llama","rope_theta":500,"rope_scaling":{"type":"linear","factor":2}}`,
			`{"model_type":"llama","rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":500.0}}`,
		},
		{
			`{"model_type":"gpt_neox","rotary_pct":1.0,"rotary_emb_base":500}`,
			`{"model_type":"gpt_neox","rope_parameters":{"rope_type":"default","rope_theta":5e2,"partial_rotary_factor":1}}`,
		},
		{
			`{"model_type":"phi","partial_rotary_factor":0.25,"rope_scaling":null}`,
			`{"model_type":"phi","rope_parameters":{"partial_rotary_factor":0.25}}`,
		},
		{
			`{"model_type":"llama","rope_scaling":{}}`,
			`{"model_type":"llama","rope_parameters":null}`,
		},
		{
			`{"model_type":"gemma3_text","rope_theta":7,"rope_local_base_freq":9,
				"rope_scaling":{"rope_type":"linear","factor":8}}`,
			`{"model_type":"gemma3_text","rope_parameters":{"full_attention":{"rope_type":"linear","factor":8,"rope_theta":7},
				"sliding_attention":{"rope_theta":9}}}`,
		},
	} {
		var got [2]*transformer.Config
		for i, raw := range pair {
			var err error
			if got[i], _, err = translate([]byte(raw), nil); err != nil {
				t.Fatalf("%s: %v", raw, err)
			}
		}
		if a, b := describeRotaries(got[0]), describeRotaries(got[1]); a != b {
			t.Errorf("%s gives %s\n%s gives %s", pair[0], a, pair[1], b)
		}
	}
}

func describeRotaries(c *transformer.Config) string {
	raw, err := json.Marshal([]any{c.Rotaries, c.LayerRotary})
	if err != nil {
		return err.Error()
	}
	return string(raw)
}
