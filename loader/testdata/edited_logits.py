"""Logits of edited models as transformers and peft compute them.

usage: edited_logits.py BASE EDITED ADAPTER [BASE EDITED ADAPTER ...]; prints a JSON list.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits[0, -1].tolist()


def main(folders):
    out = []
    for base, edited, adapter in zip(folders[0::3], folders[1::3], folders[2::3]):
        wrapped = PeftModel.from_pretrained(load(base), adapter).eval()
        out.append({"checkpoint": logits(load(edited)), "adapter": logits(wrapped)})
    json.dump(out, sys.stdout)


main(sys.argv[1:])
