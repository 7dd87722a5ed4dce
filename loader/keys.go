package loader

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"strconv"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// keys reads the settings of one JSON object. A key that is absent or null gives the default. The first error is kept
// and shared with nested objects, so that a family reads all its settings and the caller looks once.
type keys struct {
	path   string // "" or "rope_scaling.", for messages
	fields map[string]json.RawMessage
	err    *error
}

// parseKeys splits a JSON object into its fields. A key that stands twice is refused: readers differ in which counts.
func parseKeys(raw []byte) (*keys, error) {
	k := &keys{err: new(error)}
	var err error
	if k.fields, err = splitObject(raw); err != nil {
		return nil, fmt.Errorf("%w: %w", transformer.ErrConfig, err)
	}
	return k, nil
}

func splitObject(raw []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	first, err := d.Token()
	if err != nil {
		return nil, jsonError(err)
	}
	if first != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := map[string]json.RawMessage{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, jsonError(err)
		}
		key, _ := name.(string)
		if _, twice := fields[key]; twice {
			return nil, fmt.Errorf("key %q stands twice", key)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("key %q: %w", key, jsonError(err))
		}
		fields[key] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, jsonError(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return fields, nil
}

func jsonError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON ends early")
	}
	return fmt.Errorf("not JSON: %w", err)
}

// fail records an error about a key unless there is one already.
func (k *keys) fail(name, format string, args ...any) {
	if *k.err == nil {
		*k.err = fmt.Errorf("%w: %s%s %s", transformer.ErrConfig, k.path, name, fmt.Sprintf(format, args...))
	}
}

// refuse records that the engine does not know a value of a key, and which values it knows.
func (k *keys) refuse(name, value string, known ...string) {
	k.fail(name, "%s is not supported (known: %s)", value, strings.Join(known, ", "))
}

// wrongType records that a key has another JSON type than the one wanted.
func (k *keys) wrongType(name string, raw json.RawMessage, want string) {
	k.fail(name, "is %s, want %s", jsonKind(raw), want)
}

func jsonKind(raw json.RawMessage) string {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0:
		return "nothing"
	case raw[0] == '{':
		return "an object"
	case raw[0] == '[':
		return "a list"
	case raw[0] == '"':
		return "a string"
	case raw[0] == 't' || raw[0] == 'f':
		return "a boolean"
	case raw[0] == 'n':
		return "null"
	}
	if len(raw) > 40 {
		return "a number of " + strconv.Itoa(len(raw)) + " digits"
	}
	return "the number " + string(raw)
}

// find is the first of the names that is there and not null. The last name is returned if there is none.
func (k *keys) find(names ...string) (string, json.RawMessage) {
	for _, name := range names {
		if raw, ok := k.fields[name]; ok && !isNull(raw) {
			return name, raw
		}
	}
	return names[0], nil
}

func isNull(raw json.RawMessage) bool { return string(bytes.TrimSpace(raw)) == "null" }

// Null reports whether a key is there with the value null, which some settings use to switch something off.
func (k *keys) Null(name string) bool {
	raw, ok := k.fields[name]
	return ok && isNull(raw)
}

// Has reports whether a key is there with a value other than null.
func (k *keys) Has(name string) bool {
	_, raw := k.find(name)
	return raw != nil
}

// Int is an integer; 32.0 and 1e3 are integers, too.
func (k *keys) Int(def int, names ...string) int {
	name, raw := k.find(names...)
	if raw == nil {
		return def
	}
	v, err := strconv.ParseFloat(string(raw), 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		k.fail(name, "is out of range")
	case err != nil || v != math.Trunc(v):
		k.wrongType(name, raw, "an integer")
	case math.Abs(v) > maxSetting:
		k.fail(name, "is %s, out of range", raw)
	default:
		return int(v)
	}
	return def
}

// Size is an integer from 1 to limit.
func (k *keys) Size(limit, def int, names ...string) int {
	v := k.Int(def, names...)
	if v < 1 || v > limit {
		name, _ := k.find(names...)
		k.fail(name, "is %d, want 1 to %d", v, limit)
		return min(max(def, 1), limit)
	}
	return v
}

// Optional is a size where null, zero and an absent key mean the default.
func (k *keys) Optional(limit, def int, names ...string) int {
	if name, _ := k.find(names...); k.Int(0, name) == 0 {
		return def
	}
	return k.Size(limit, def, names...)
}

// Float is a number.
func (k *keys) Float(def float64, names ...string) float64 {
	name, raw := k.find(names...)
	if raw == nil {
		return def
	}
	v, err := strconv.ParseFloat(string(raw), 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		k.fail(name, "is out of range")
	case err != nil:
		k.wrongType(name, raw, "a number")
	default:
		return v
	}
	return def
}

// Positive is a number above zero.
func (k *keys) Positive(def float64, names ...string) float64 {
	v := k.Float(def, names...)
	if !(v > 0) {
		name, _ := k.find(names...)
		k.fail(name, "is %g, want a number above 0", v)
		return 1
	}
	return v
}

// Cap is a positive number, or 0 for none: what null and zero mean. Only an absent key gives the default.
func (k *keys) Cap(def float64, name string) float64 {
	if k.Null(name) {
		return 0
	}
	v := k.Float(def, name)
	if v < 0 {
		k.fail(name, "is %g, want a number above 0", v)
		return 0
	}
	return v
}

// Bool is true or false.
func (k *keys) Bool(def bool, name string) bool {
	_, raw := k.find(name)
	switch string(raw) {
	case "true":
		return true
	case "false":
		return false
	case "":
	default:
		k.wrongType(name, raw, "true or false")
	}
	return def
}

// String is a string.
func (k *keys) String(def string, names ...string) string {
	name, raw := k.find(names...)
	if raw == nil {
		return def
	}
	var v string
	if raw[0] != '"' || json.Unmarshal(raw, &v) != nil {
		k.wrongType(name, raw, "a string")
		return def
	}
	return v
}

// Strings is a list of strings, nil if the key is absent.
func (k *keys) Strings(name string) []string {
	_, raw := k.find(name)
	if raw == nil {
		return nil
	}
	var v []string
	if err := json.Unmarshal(raw, &v); err != nil {
		k.fail(name, "is %s, want a list of strings", jsonKind(raw))
		return nil
	}
	return v
}

// Ints is a list of integers, nil if the key is absent.
func (k *keys) Ints(name string) []int {
	_, raw := k.find(name)
	if raw == nil {
		return nil
	}
	var v []int
	if err := json.Unmarshal(raw, &v); err != nil {
		k.fail(name, "is %s, want a list of integers", jsonKind(raw))
		return nil
	}
	return v
}

// Object is a nested object, nil if the key is absent, null or {}.
func (k *keys) Object(name string) *keys {
	_, raw := k.find(name)
	if raw == nil {
		return nil
	}
	if raw[0] != '{' {
		k.wrongType(name, raw, "an object")
		return nil
	}
	fields, err := splitObject(raw)
	if err != nil {
		k.fail(name, "is bad: %v", err)
	}
	if len(fields) == 0 {
		return nil
	}
	return &keys{path: k.path + name + ".", fields: fields, err: k.err}
}

// Off refuses switches that are on.
func (k *keys) Off(names ...string) {
	for _, name := range names {
		if k.Bool(false, name) {
			k.refuse(name, "true", "false")
		}
	}
}

// On refuses switches that are off.
func (k *keys) On(names ...string) {
	for _, name := range names {
		if !k.Bool(true, name) {
			k.refuse(name, "false", "true")
		}
	}
}

// over is k's settings where it has them, and below's otherwise.
func (k *keys) over(below *keys) *keys {
	fields := maps.Clone(below.fields)
	if fields == nil {
		fields = map[string]json.RawMessage{}
	}
	maps.Copy(fields, k.fields)
	return &keys{path: k.path, fields: fields, err: k.err}
}
