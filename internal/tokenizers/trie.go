package tokenizers

// trie finds the entries that a text begins with.
type trie struct {
	nodes []trieNode
}

// trieNode has its children in a list, chained through next: most nodes have one or two.
type trieNode struct {
	label       byte
	found       bool
	value       int32
	child, next int32 // 0: none, as the root is nobody's child
}

// add stores value under key; a later value for the same key replaces the earlier one.
func (t *trie) add(key string, value int32) {
	if len(t.nodes) == 0 {
		t.nodes = append(t.nodes, trieNode{})
	}
	at := int32(0)
	for i := range len(key) {
		next := t.child(at, key[i])
		if next == 0 {
			next = int32(len(t.nodes))
			t.nodes = append(t.nodes, trieNode{label: key[i], next: t.nodes[at].child})
			t.nodes[at].child = next
		}
		at = next
	}
	t.nodes[at].found, t.nodes[at].value = true, value
}

func (t *trie) child(at int32, label byte) int32 {
	for c := t.nodes[at].child; c != 0; c = t.nodes[c].next {
		if t.nodes[c].label == label {
			return c
		}
	}
	return 0
}

// prefixes calls found for every entry that text begins with, the shortest first.
func (t *trie) prefixes(text string, found func(value int32, size int)) {
	if len(t.nodes) == 0 {
		return
	}
	at := int32(0)
	for i := range len(text) {
		if at = t.child(at, text[i]); at == 0 {
			return
		}
		if n := &t.nodes[at]; n.found {
			found(n.value, i+1)
		}
	}
}

func (t *trie) longest(text string) (value int32, size int) {
	t.prefixes(text, func(v int32, n int) { value, size = v, n })
	return value, size
}

// starts reports which bytes an entry can begin with.
func (t *trie) starts() (set [256]bool) {
	if len(t.nodes) == 0 {
		return set
	}
	for c := t.nodes[0].child; c != 0; c = t.nodes[c].next {
		set[t.nodes[c].label] = true
	}
	return set
}
