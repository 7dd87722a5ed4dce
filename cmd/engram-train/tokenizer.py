"""Trains a byte-level BPE tokenizer on the lines of standard input, with PyPI's tokenizers.

usage: tokenizer.py SIZE OUT.json < TEXT

The text's lines are documents. Token 0 is <|endoftext|>, then come the 256 bytes, then the merges in order of frequency.
"""
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=int(sys.argv[1]),
    special_tokens=["<|endoftext|>"],
    show_progress=False,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
)
sys.stdin.reconfigure(encoding="utf-8")
tokenizer.train_from_iterator((line.rstrip("\n") for line in sys.stdin), trainer)
tokenizer.save(sys.argv[2])
