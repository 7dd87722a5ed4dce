"""Writes tokenizer_settings.json: what transformers' AutoTokenizer makes of tokenizers with various settings.

    python3 tokenizer_settings.py

Made with transformers 5.23 and tokenizers 0.23. Every case is a folder: a tokenizer of ../../internal/tokenizers/testdata,
or its vocabulary as vocab.json and merges.txt, and the files beside it.
"""

import json
import os
import tempfile

from transformers import AutoTokenizer, GPT2Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "../../internal/tokenizers/testdata")
TEXTS = ["", "Once upon a time", "a<s>b</s>", "<|endoftext|>once", "x <pad> y", "  two\n", "other ot"]
BOS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CASES = [
    ("llama2", BOS),
    ("llama2", BOS | {"add_bos_token": False}),
    ("llama2", BOS | {"add_bos_token": True, "add_eos_token": True}),
    ("llama2", BOS | {"add_eos_token": True}),
    ("llama2", {"add_bos_token": True}),
    ("llama2", {"bos_token": {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "__type": "AddedToken"},
                "add_bos_token": True}),
    ("llama3", {"bos_token": "<|begin_of_text|>"}),
    ("llama3", {"bos_token": "<|begin_of_text|>", "add_bos_token": False}),
    ("qwen2", {"eos_token": "<|endoftext|>", "add_bos_token": False, "bos_token": None}),
    ("bloom", {"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": True}),
    ("gpt4o", {"eos_token": "<|endoftext|>", "extra_special_tokens": ["her", "ot"]}),
    ("bert", {"cls_token": "[CLS]", "sep_token": "[SEP]"}),
]


def main():
    out = []
    for name, settings in CASES:
        with tempfile.TemporaryDirectory() as folder:
            files = {"tokenizer_config.json": json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"})}
            with open(os.path.join(SOURCE, name + ".json"), encoding="utf-8") as f:
                data = f.read()
            for file, text in (files | {"tokenizer.json": data}).items():
                with open(os.path.join(folder, file), "w", encoding="utf-8") as f:
                    f.write(text)
            out.append(case(AutoTokenizer.from_pretrained(folder), name, files, False))
    out.append(merges("gpt4o", {}))
    out.append(merges("gpt4o", {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}))
    out.append(merges("bloom", {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "add_bos_token": True}))
    with open(os.path.join(HERE, "tokenizer_settings.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in out) + "\n]\n")


def merges(name, settings):
    with open(os.path.join(SOURCE, name + ".json"), encoding="utf-8") as f:
        model = json.load(f)["model"]
    with tempfile.TemporaryDirectory() as folder:
        files = {"tokenizer_config.json": json.dumps(settings)}
        lines = ["#version: 0.2"] + [" ".join(m) for m in model["merges"]]
        more = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(lines) + "\n"}
        for file, text in (files | more).items():
            with open(os.path.join(folder, file), "w", encoding="utf-8") as f:
                f.write(text)
        return case(GPT2Tokenizer.from_pretrained(folder), name, files, True)


def case(tok, name, files, as_merges):
    rows = []
    for text in TEXTS:
        ids = tok(text)["input_ids"]
        rows.append([ids, tok(text, add_special_tokens=False)["input_ids"], tok.decode(ids, skip_special_tokens=True)])
    return {"tokenizer": name, "merges": as_merges, "files": files, "texts": TEXTS, "rows": rows}


main()
