package probes

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// VectorLoader gives a direction of the residual stream by its name, such as a file's.
type VectorLoader func(name string) ([]float32, error)

// ParseChanges reads one line of a script: MODE TARGET[,TARGET…][=VALUE] [@WHERE], one change for each target.
//
//	set L10N123=3 @all           a memory's coefficient
//	scale L3N5,L3N7=0.5          of two memories
//	ablate L9H6 @4,-1            a head's output, at two positions
//	ablate L9H6<3 @5             what the head reads of position 3 there: its attention to it
//	add L2.resid_mid[7]=-1       a component of any site; no brackets mean all of them
//	set-score L1N27=max          see Mode
//	steer calm.safetensors@6=4   4 times a vector is added to what leaves layer 6 …
//	ablate calm.safetensors@6:resid_mid   … or the direction is projected out, at another site
//
// WHERE is last (the default), all, prompt, generated, or positions. Errors wrap ErrChange or what vectors gives.
func ParseChanges(line string, vectors VectorLoader) ([]Change, error) {
	name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	mode := Mode(name)
	if !slices.Contains(Modes(), mode) {
		return nil, fmt.Errorf("%w: %q does not begin with one of %s", ErrChange, line, modeNames())
	}
	return parseTargets(mode, strings.TrimSpace(rest), line, vectors)
}

func modeNames() string {
	var names []string
	for _, m := range Modes() {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}

// ParseChange reads what follows a mode.
func ParseChange(mode Mode, rest string, vectors VectorLoader) ([]Change, error) {
	return parseTargets(mode, strings.TrimSpace(rest), string(mode)+" "+rest, vectors)
}

func parseTargets(mode Mode, rest, line string, vectors VectorLoader) ([]Change, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %q: %s", ErrChange, line, fmt.Sprintf(format, args...))
	}
	base := Change{Mode: mode, Value: 1}
	rest, at, err := cutWhere(rest)
	if err != nil {
		return nil, bad("%v", err)
	}
	base.At = at
	targets, value, valued := rest, "", false
	if i := strings.LastIndexByte(rest, '='); i >= 0 {
		targets, value, valued = strings.TrimSpace(rest[:i]), strings.TrimSpace(rest[i+1:]), true
	}
	switch mode {
	case ModeAblate, ModeMean, ModeResample:
		if valued {
			return nil, bad("%s takes no value", mode)
		}
		base.Value = 0
	case ModeSteer:
	default:
		if !valued {
			return nil, bad("no value; write %s=1", targets)
		}
	}
	if valued {
		if base.Max = mode == ModeSetScore && value == "max"; base.Max {
			base.Value = 0
		} else if base.Value, err = strconv.ParseFloat(value, 32); err != nil {
			return nil, bad("%q is not a number", value)
		}
	}
	var out []Change
	for _, target := range splitTargets(targets) {
		c := base
		if err := c.parseTarget(strings.TrimSpace(target), vectors); err != nil {
			return nil, err
		}
		if c.Vector == nil && mode == ModeSteer {
			return nil, bad("steer needs a vector, FILE@LAYER")
		}
		if c.Vector != nil && mode != ModeSteer && mode != ModeSet && mode != ModeAblate {
			return nil, bad("a vector can be steered along, set or ablated")
		}
		out = append(out, c)
	}
	return out, nil
}

// cutWhere takes the positions off the end: behind a blank, or behind the last @ unless that names a vector's layer.
func cutWhere(s string) (rest string, at Where, err error) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return s, at, nil
	}
	head, tail := strings.TrimSpace(s[:i]), strings.TrimSpace(s[i+1:])
	named := regexp.MustCompile(`^(L\d+[NH.]|embed|final|logits)`).MatchString(s)
	if !named && i > 0 && s[i-1] != ' ' && vectorTarget().MatchString(s) && !vectorTarget().MatchString(head) {
		return s, at, nil // FILE@LAYER
	}
	switch k := WhereKind(tail); k {
	case AtLast, AtAll, AtPrompt, AtGenerated:
		return head, Where{Kind: k}, nil
	}
	for _, text := range strings.Split(tail, ",") {
		p, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return "", at, fmt.Errorf("%q is none of last, all, prompt, generated and positions such as 3,-1", tail)
		}
		at.List = append(at.List, p)
	}
	at.Kind = AtList
	return head, at, nil
}

// splitTargets splits at commas outside brackets.
func splitTargets(s string) []string {
	var out []string
	depth, from := 0, 0
	for i, r := range s {
		switch r {
		case '[':
			depth++
		case ']':
			depth--
		case ',':
			if depth == 0 {
				out, from = append(out, s[from:i]), i+1
			}
		}
	}
	return append(out, s[from:])
}

// siteTarget is a site of a layer, L2.resid_mid[7,9-11], or one outside the layers.
func siteTarget() *regexp.Regexp {
	return regexp.MustCompile(`^(?:L(\d{1,6})\.([a-z_]+)|(embed|final|logits))(?:\[([\d,\- ]+)\])?$`)
}

// edgeTarget is a head with a position that it reads, L9H6<3.
func edgeTarget() *regexp.Regexp { return regexp.MustCompile(`^(L\d+H\d+)<(\d{1,6})$`) }

// vectorTarget is a file of a vector with a layer, and perhaps a site; a value may follow.
func vectorTarget() *regexp.Regexp {
	return regexp.MustCompile(`^(.+)@(\d{1,6})(?::(resid_pre|resid_mid|resid_post))?(=[^@=]*)?$`)
}

func (c *Change) parseTarget(target string, vectors VectorLoader) error {
	if n, err := transformer.ParseNeuron(target); err == nil {
		c.Site, c.Layer, c.Units = transformer.Coef, n.Layer, []int{n.Index}
		return nil
	}
	if h, err := transformer.ParseHead(target); err == nil {
		c.Site, c.Layer, c.Units = transformer.HeadOut, h.Layer, []int{h.Index}
		return nil
	}
	if m := edgeTarget().FindStringSubmatch(target); m != nil {
		h, err := transformer.ParseHead(m[1])
		source, _ := strconv.Atoi(m[2])
		c.Site, c.Layer, c.Units, c.Sources = transformer.Pattern, h.Layer, []int{h.Index}, []int{source}
		return err
	}
	if m := siteTarget().FindStringSubmatch(target); m != nil {
		return c.parseSite(m[1], m[2]+m[3], m[4])
	}
	m := vectorTarget().FindStringSubmatch(target)
	if m == nil {
		return fmt.Errorf("%w: %q is no memory L3N12, head L3H1, edge L3H1<2, site L3.attn_out or vector FILE@3",
			ErrChange, target)
	}
	if vectors == nil {
		return fmt.Errorf("%w: vectors cannot be read here: %q", ErrChange, target)
	}
	layer, err := strconv.Atoi(m[2])
	if err != nil {
		return fmt.Errorf("%w: %q: %w", ErrChange, target, err)
	}
	v, err := vectors(m[1])
	if err != nil {
		return err
	}
	if length(v) == 0 {
		return fmt.Errorf("%w: the vector %s is zero", ErrChange, m[1])
	}
	c.Name, c.Vector, c.Layer, c.Site = m[1], v, layer, transformer.ResidPost
	if m[3] != "" {
		c.Site = transformer.Site(m[3])
	}
	return nil
}

func (c *Change) parseSite(layer, site, units string) (err error) {
	if c.Site, err = transformer.ParseSite(site); err != nil {
		return err
	}
	if layer != "" {
		if c.Layer, err = strconv.Atoi(layer); err != nil {
			return fmt.Errorf("%w: layer %q: %w", ErrChange, layer, err)
		}
	}
	if layer != "" && !c.Site.InBlock() {
		return fmt.Errorf("%w: %s belongs to no layer", ErrChange, site)
	}
	if units == "" {
		return nil
	}
	for _, text := range strings.Split(units, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(text), "-")
		from, err := strconv.Atoi(first)
		to := from
		if err == nil && ranged {
			to, err = strconv.Atoi(last)
		}
		if err != nil || to < from || to-from+len(c.Units) > maxUnits {
			return fmt.Errorf("%w: %q is no component or range of them", ErrChange, text)
		}
		for u := from; u <= to; u++ {
			c.Units = append(c.Units, u)
		}
	}
	return nil
}

// maxUnits bounds how many components one target names.
const maxUnits = 1 << 20

// String writes the change as ParseChanges reads it.
func (c *Change) String() string {
	text := string(c.Mode) + " " + c.target()
	switch {
	case c.Max:
		text += "=max"
	case c.Mode == ModeAblate || c.Mode == ModeMean || c.Mode == ModeResample:
	default:
		text += "=" + strconv.FormatFloat(c.Value, 'g', -1, 32)
	}
	switch c.At.Kind {
	case AtDefault:
		return text
	case AtList:
		var list []string
		for _, p := range c.At.List {
			list = append(list, strconv.Itoa(p))
		}
		return text + " @" + strings.Join(list, ",")
	}
	return text + " @" + string(c.At.Kind)
}

func (c *Change) target() string {
	switch {
	case c.Vector != nil:
		name := fmt.Sprintf("%s@%d", c.Name, c.Layer)
		if c.Site != transformer.ResidPost {
			name += ":" + string(c.Site)
		}
		return name
	case c.Site == transformer.Coef && len(c.Units) == 1:
		return transformer.Neuron{Layer: c.Layer, Index: c.Units[0]}.String()
	case c.Site == transformer.HeadOut && len(c.Units) == 1:
		return transformer.Head{Layer: c.Layer, Index: c.Units[0]}.String()
	case len(c.Sources) == 1 && len(c.Units) == 1:
		return fmt.Sprintf("%s<%d", transformer.Head{Layer: c.Layer, Index: c.Units[0]}, c.Sources[0])
	}
	name := string(c.Site)
	if c.Site.InBlock() {
		name = fmt.Sprintf("L%d.%s", c.Layer, c.Site)
	}
	if c.Units == nil {
		return name
	}
	return name + "[" + rangesText(c.Units) + "]"
}

// rangesText writes numbers as 1,3-5.
func rangesText(list []int) string {
	var parts []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if j > i {
			parts = append(parts, fmt.Sprintf("%d-%d", list[i], list[j]))
		} else {
			parts = append(parts, strconv.Itoa(list[i]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// Overridden tells which changes leave nothing of an earlier one at the same memories and positions, one line for each
// pair.
func (iv *Interventions) Overridden() []string {
	var out []string
	for i := range iv.Changes {
		for j := i + 1; j < len(iv.Changes); j++ {
			a, b := &iv.Changes[i], &iv.Changes[j]
			if a.Site == b.Site && a.Layer == b.Layer && a.Vector == nil && b.Vector == nil && b.replaces() &&
				meets(a.Units, b.Units) && meets(a.Sources, b.Sources) &&
				(a.At.Kind == b.At.Kind && slices.Equal(a.At.List, b.At.List) || b.At.Kind == AtAll) {
				out = append(out, fmt.Sprintf("%s: what %s did is gone", b, a))
			}
		}
	}
	return out
}

// replaces reports whether what stood at the target does not matter afterwards.
func (c *Change) replaces() bool {
	return slices.Contains([]Mode{ModeSet, ModeAblate, ModeSetScore, ModeMean, ModeResample}, c.Mode)
}

// meets reports whether two selections share a unit; nil is all.
func meets(a, b []int) bool {
	return a == nil || b == nil || slices.ContainsFunc(a, func(u int) bool { return slices.Contains(b, u) })
}
