"""Loads pairs of checkpoints with transformers and compares their logits bit for bit: same_logits.py A B [A B …]."""
import json
import pathlib
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()
paths = sys.argv[1:]
for a, b in zip(paths[::2], paths[1::2]):
    logits = []
    for path in (a, b):
        kind = json.loads((pathlib.Path(path) / "config.json").read_text())["architectures"][0]
        model, info = getattr(transformers, kind).from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], (path, info)
        with torch.no_grad():
            logits.append(model.eval()(torch.tensor([[5, 6, 7, 8, 9]])).logits)
    assert torch.equal(*logits), f"{a} and {b} differ by {(logits[0] - logits[1]).abs().max()}"
