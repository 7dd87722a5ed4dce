"""Writes golden.json: the non-empty matches of expressions in texts, as byte offsets, by Oniguruma.

    python3 make_golden.py

Python's tokenizers library (0.23) brings Oniguruma with it.
"""

import json
import os

from tokenizers import Regex, pre_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))

PATTERNS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s", r"\s++x", r"\s+x", r"a*+a", r"a++b",
    r" ?[^(\s|[.,!?…。，、।۔،])]+", r"[0-9][0-9][0-9]", r"\d{2,3}?", r"\d{2,}", r"\d{,2}x", r"\d{2}", r"(ab|a)(c|bcd)", r"a|ab|abc", r"(?:a|ab)(?=c)", r"a(?!b)",
    r"\w+", r"\W+", r"\S+", r"\D+", r"\h+", r"\H+", r"[[:alpha:]]+", r"[[:^alpha:]]+", r"[[:digit:][:space:]]+", r"\p{Lu}\p{Ll}*", r"\P{L}+", r"\p{^L}+",
    r"\p{Han}+", r"\p{Hiragana}|\p{Katakana}", r"\p{Greek}+", r"\p{Alphabetic}+", r"\p{White_Space}", r"[\p{L}&&[^a-z]]+", r"[a-z&&[^aeiou]]+", r"[^a-z&&[^aeiou]]+",
    r"^.", r".$", r"^\w+", r"\w+$", r"\A\w", r"\w\z", r"\w\Z", r"\b\w", r"\w\b", r"\B\w", r".+", r"(?i)once|TIME", r"(?i:[A-C]+)", r"[^abc]+?c", r"(a+)+b", r"(a|b)*c", r"(?>a+)a",
    r"(?>ab|a)c", r"\x41|\x{65E5}|\u672C", r"\t|\n|\r", r"[\t\n]", r"[a\-z]+", r"[a-]+", r"[-a]+", r"[]a]+", r"[^]a]+", r"[\]a]+", r"\.|\*|\+", r"(?:)", r"x*", r"(a*)*b", r"(?:a?){3}", r"(|a)+",
    r"[一-龥]+", r"[\u4E00-\u9FA5]+", r"ſ|(?i:s)", r"(?i:k)", r"\e|\a|\f|\v|\0", r"((?i)a)b", r"a{0}b", r"a??b", r"(?:ab){2,3}", r"(?:ab){1,2}?c",
]
TEXTS = [
    "", "a", "b", "c", "ab", "abc", "abcd", "aaab", "aaaac", "aac", "abac", "ababab c", "ababababc", "  x", "   ", " a  b ", "a\nb\n", "\n", "\r\n\r\n x", "Once upon a TIME,\tit's 12345 678 don'T  ",
    "ABC abc aBc", "12x 123x x", "日本語 テスト ひらがな漢字、中文。", "Ελληνικά ΣΑΣ", "é e\u0301 ſ K k İ", "straße STRASSE", "a-z]-a", "(x|y) [.,!?…。] a|b",
    "foo_bar 1_000 ٣٤", "\u00a0\u2003\u3000 \u200b\u200d", "😀👍🏽 x😀", "\x1b\x07\x0c\x0b\x00", "....**++", "a\u00adb\u200cc", "x" * 12 + " " * 9, "A日本x", "₂² ½ Ⅷ", "ǅ ǆ Ǆ", "a b c d e f", "aeioubcdf XYZ",
]


def main():
    out = []
    for pattern in PATTERNS:
        split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
        rows = []
        for text in TEXTS:
            at = [0]
            for c in text:
                at.append(at[-1] + len(c.encode()))
            rows.append([[at[a], at[b]] for piece, (a, b) in split.pre_tokenize_str(text)])
        out.append({"pattern": pattern, "matches": rows})
    with open(os.path.join(HERE, "golden.json"), "w", encoding="utf-8") as f:
        f.write('{"texts":' + json.dumps(TEXTS) + ',"cases":[\n')
        f.write(",\n".join(json.dumps(c, separators=(",", ":")) for c in out) + "\n]}\n")


main()
