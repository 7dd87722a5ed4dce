package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

func TestEnvelopeSaysWhatMadeTheResult(t *testing.T) {
	var out bytes.Buffer
	e := Envelope{
		Schema: "engram.lens", Engram: "v1", Backend: "go", Model: &Model{"stories", "abc", "F32"},
		Conventions: map[string]string{"rank": "0 is best"}, Result: map[string]string{"text": "<s>\x1b[31m\x07"},
	}
	if err := e.Write(&out); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got["schema"] != "engram.lens" || got["schema_version"] != 1.0 || got["engram"] != "v1" || got["backend"] != "go" {
		t.Errorf("got %v", got)
	}
	if m := got["model"].(map[string]any); m["name"] != "stories" || m["fingerprint"] != "abc" || m["dtype"] != "F32" {
		t.Errorf("model %v", m)
	}
	if strings.ContainsAny(out.String(), "\x1b\x07") || !strings.Contains(out.String(), "<s>") {
		t.Errorf("escaping: %q", out.String())
	}
}

func TestEnvelopeWithoutAModel(t *testing.T) {
	var out bytes.Buffer
	if err := (&Envelope{Schema: "engram.version"}).Write(&out); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Contains(s, "model") || !strings.Contains(s, `"conventions": {}`) || !strings.HasSuffix(s, "}\n") {
		t.Errorf("got %s", s)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestErrorsAreReturned(t *testing.T) {
	e := Envelope{Schema: "x"}
	if err := e.Write(full{}); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a full disk gives %v", err)
	}
	e.Result = math.NaN()
	if err := e.Write(&bytes.Buffer{}); err == nil {
		t.Error("JSON has no NaN, and no error came")
	}
}

// TestTextSurvivesUnseen: any text reads back as it was, and nothing in the output is unseen.
func TestTextSurvivesUnseen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unseen := []rune("\u202e\u200b\x7f\x1b\U000e0001\u2028a\\\"<&\n")
		text := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.SampledFrom(unseen))).Draw(t, "text")
		var out bytes.Buffer
		if err := (&Envelope{Result: text}).Write(&out); err != nil {
			t.Fatal(err)
		}
		var got struct{ Result string }
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Result != strings.ToValidUTF8(text, "\ufffd") {
			t.Fatalf("%q reads back as %q, %v", text, got.Result, err)
		}
		for _, r := range out.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Fatalf("%q holds %U", out.String(), r)
			}
		}
	})
}
