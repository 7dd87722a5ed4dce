// Package pattern matches the regular expressions of tokenizer.json files.
//
// Tokenizers split text with Oniguruma expressions, whose look-aheads and possessive repeats package regexp does not
// have. Compile takes the part of that syntax that tokenizers use: alternatives, groups, (?i:…), look-aheads, atomic
// groups, classes with nesting and &&, \p{…}, \s \d \w \h, anchors, and greedy, lazy and possessive repeats. Anything
// else is an error that names the construct. Back-references and look-behinds are not part of it.
//
// Matching backtracks, so an expression can take exponential time; a budget of steps turns that into ErrBudget.
package pattern

import "errors"

// ErrBudget reports that an expression needed more steps than any sound one does.
var ErrBudget = errors.New("pattern takes too many steps")

// ErrSyntax reports an expression that is malformed or uses a construct outside the supported part.
var ErrSyntax = errors.New("pattern not supported")
