"""Writes charsmap.json: a small SentencePiece charsmap and what Python's tokenizers library (0.23) makes of texts with it.

    python3 make_charsmap.py
"""

import base64
import json
import os
import struct

from tokenizers import Tokenizer, models, normalizers

HERE = os.path.dirname(os.path.abspath(__file__))
RULES = {"ﬁ": "fi", "①": "1", "Å": "Å", "A\u030a": "Å", "ｶﾞ": "ガ", "ｶ": "カ", "\u200b": "", "\t": " ", "é": "e", "㍍": "メートル", "x": "yz"}
TEXTS = ["", "ﬁn", "①②", "A\u030a Å", "ｶﾞｶ", "a\u200bb", "\ta\tb", "café é", "㍍x㍍", "xxx", "日本", "e\u0301", "👨‍👩‍👧‍👦ﬁ", "\r\nx\r\n", "A\u030a\u030a"]


def build(rules):
    """A double array: the children of a node at base b are b ^ byte; a leaf is b itself and holds the offset."""
    text, offsets = b"", {}
    for target in rules.values():
        if target not in offsets:
            offsets[target] = len(text)
            text += target.encode() + b"\0"
    root = {}
    for key, target in rules.items():
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = offsets[target]
    units, used, free = {}, {0}, [256]

    def place(at, node, label):
        base = free[0]  # a block of its own for each node: large, and easy to see to be right
        free[0] += 256
        used.add(base)
        offset = at ^ base
        assert offset < 1 << 21
        units[at] = label | (offset << 10) | ((1 << 8) if None in node else 0)
        if None in node:
            units[base] = (1 << 31) | node[None]
        for byte, child in node.items():
            if byte is not None:
                place(base ^ byte, child, byte)

    place(0, root, 0)
    trie = b"".join(struct.pack("<I", units.get(i, 0)) for i in range(free[0]))
    return struct.pack("<I", len(trie)) + trie + text


def main():
    blob = build(RULES)
    tok = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tok.normalizer = normalizers.Precompiled(blob)
    rows = [tok.normalizer.normalize_str(text) for text in TEXTS]
    with open(os.path.join(HERE, "charsmap.json"), "w", encoding="utf-8") as f:
        json.dump({"charsmap": base64.b64encode(blob).decode(), "texts": TEXTS, "normalized": rows}, f)
        f.write("\n")


main()
