"""Trains the tiny tokenizers of this folder and writes what Python's tokenizers library makes of texts.json with them.

    python3 make_tokenizers.py [FOLDER …]

Each FOLDER with a tokenizer.json adds goldens under its name without adding a tokenizer. Everything is seeded; the
versions used were tokenizers 0.23.3 and Python 3.11. Output: *.json (tokenizers), texts.json, golden.json.gz.
"""

import gzip
import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))

WORDS = """the of and to in a is that it was for on are as with his they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she many some so
these would other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know girl named Lily once upon
park tree friend happy play mother capital Paris France Berlin London language speaks plays basketball football""".split()

FOREIGN = """Привет мир это проверка|こんにちは世界 テスト|你好，世界！这是一个测试。|안녕하세요 세계|مرحبا بالعالم هذا اختبار|שלום עולם|
नमस्ते दुनिया|สวัสดีชาวโลก|Γειά σου Κόσμε ΣΊΣΥΦΟΣ|Xin chào thế giới|İstanbul'da ığdır|straße GROSSE ﬁnanzen|naïve café résumé Ångström""".replace("\n", "").split("|")

HAND = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "\r", "a", " a", "a ", " a ", "  two  spaces ", "\ttab\tinside",
    "line\nbreak", "line \n break", "trailing newline\n", "\n\n\nthree", "mixed \t \n \r\n end", "a\u00a0b", "a\u3000b\u2003c",
    "Once upon a time, there was a little girl named Lily.", "Hello, world!", "I'm you're he'll we've she'd it's don't",
    "I'M YOU'RE HE'LL WE'VE", "don’t ‘quote’ “double”", "ſ'ſ 'ſ K'K", "3.14159 1,000,000 12345678901234567890 0x1F",
    "１２３ ⅷ ½ ² ٣٤٥", "foo_bar fooBar FooBAR foo-bar foo.bar foo/bar", "!!! ??? ... --- ***", "a.b,c;d:e!f?g", "()[]{}<>«»",
    "$100 €200 £300 ¥400", "x = y + z * (w - 1) ^ 2", "for (int i = 0; i < n; i++) {\n    a[i] += 1;\n}", "https://example.com/a?b=c&d=e#f",
    "user@example.com", "#hashtag @mention", "😀", "😀😀😀", "a😀b", "👨‍👩‍👧‍👦 family", "👍🏽 skin", "🇩🇪🇫🇷 flags", "❤️ heart", "☕ and ✈️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "e\u0301 combining", "\u0301leading mark", "a\u0323\u0307 b\u0307\u0323", "q\u0307\u0323x", "Å Å Å", "\u1e9b\u0323", "ﬁ ﬂ ﬃ", "①②③", "㌀㍿",
    "각 각 가", "ÀÉÎÕÜ àéîõü", "ẞß", "İIıi", "ΣΑΣ σας", "Ǆ ǅ ǆ", "\u200bzero\u200bwidth\u200d\u200c", "\ufeffbom", "\u202ertl override\u202c",
    "\u2066isolate\u2069", "soft\u00adhyphen", "\ufffd replacement", "\ue000 private", "\U000f0000", "\U0010ffff", "\u0378 unassigned", "\x01\x02\x1b[31mred\x1b[0m",
    "\x7f\x80\x85\x9f", "\u2028line\u2029para", "NUL\x00inside", "\x00", "▁", "▁▁", "a▁b", " ▁ ", "Ġ Ċ ĉ", "<0x41>", "<0xE2>", "<unk>", "<s>", "</s>",
    "Once <s>upon", "Once <s> upon</s> a", "<s><s>", " <s>", "<s> ", "<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b", "<|endoftext", "<|begin_of_text|>x",
    "<|im_start|>user\nhi<|im_end|>", "[CLS] a [SEP] [MASK] [UNK] [PAD]", "[cls]", "<mask>", "a <mask> b", "a  <mask>  b", "a\u3000<mask>", "<bos>x<eos>", "<pad>",
    "word<extra>word", " <extra> ", "xTOKENx TOKEN xTOKEN", "TOKEN", "(TOKEN)", "token", "  leading", "trailing  ", "a  b   c    d     e", " " * 40, "x" + " " * 17 + "y", "\n" * 9,
    " \t" * 8, "a" * 120, "ab" * 64, "é" * 50, "漢" * 30, "漢字とかな カナ混じり文", "中文English混排123数字", "한국어English", "日本語。テスト、です！", "ｆｕｌｌｗｉｄｔｈ　ｔｅｘｔ",
    "עברית and English", "العربية 123 مختلط", "۱۲۳ ؟ ، ؛", "किताबें पढ़ना", "ไม่มีช่องว่าง", "ཧཱུྃ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛", "𐍈 gothic", "𓀀", "a\u0300\u0301\u0302\u0303\u0304\u0305zalgo",
    "tab\tand  spaces\t\tmixed ", "\"quoted\"", "'single'", "it 's", "do not", " .", " ?", "n't", "A.B.C.", "U.S.A", "CamelCaseWord", "ALLCAPS lower Title", "end", "12 34 567 8901",
    "2024-01-31T12:34:56Z", "a\vb\fc", "...\n\n...", "- item\n- item\n  - nested", "| a | b |\n|---|---|", "\\escape \\n \\u0041", "{\"json\": [1, 2, {\"a\": null}]}",
    "𠀀𪜀𫝀 rare 𮯠", "丽 compatibility 豈", "çé ça", "a\u0327\u0301 e\u0301\u0327", "\u0915\u093c \u0958", "\u0344 \u2126 \u212b",
    "ЖЖЖ known ЖЖ", "漢漢漢x漢", "ᏣᎳᎩ ᏣᎳ",
]


def texts():
    rng = random.Random(7)
    out = HAND + FOREIGN
    for _ in range(60):
        out.append(" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 14))) + rng.choice([".", "!", "?", "", "\n"]))
    pools = [
        "abcXYZ 019'.,!\n\t", "aé漢😀 \u0301\u200d", "  \n\r\t\u00a0\u3000a1", "'sStTrReEvVmMlLdD ", "0123456789., ", "אבגدрстабв xyz",
        "".join(chr(c) for c in range(1, 128)), "".join(chr(c) for c in range(0xA0, 0x250)), "\u1100\u1161\u11a8가각ᄀ", "ΑΒΓΣσςἈὈᾳ\u0345\u0314",
        "▁ <>sx0/4A", "﷽ﷺ㍍①ｶﾞｱ\u3099が",
    ]
    for pool in pools:
        for n in (3, 8, 15, 30):
            for _ in range(2):
                out.append("".join(rng.choice(pool) for _ in range(n)))
    for n in (5, 12, 25):  # anything assigned long enough ago that all libraries agree on it
        for lo, hi in ((0x20, 0x7F), (0xA0, 0x530), (0x900, 0xDFF), (0x3040, 0x3100), (0x4E00, 0x9FA5), (0x1F300, 0x1F5FF)):
            for _ in range(3):
                out.append("".join(chr(rng.randrange(lo, hi)) for _ in range(n)))
    return out


def corpus():
    rng = random.Random(3)
    lines = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 12))).capitalize() + "." for _ in range(1500)]
    return lines + FOREIGN * 20 + ["Numbers 12 345 6789, it's don't we've." for _ in range(30)] + ["😀 👍 😀"] * 10


def bpe_trained(tok, size, specials, alphabet=()):
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=list(alphabet), show_progress=False))


def byte_level(size, pre, specials, **kw):
    tok = Tokenizer(models.BPE(**kw))
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    bpe_trained(tok, size, specials, sorted(pre_tokenizers.ByteLevel.alphabet()))
    return tok


def split(regex, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(regex), behavior=behavior, invert=invert)


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def template(tok, single):
    ids = [(t, tok.token_to_id(t)) for t in single.split() if not t.startswith("$")]
    return processors.TemplateProcessing(single=single, pair=single + " $B", special_tokens=ids)


def with_byte_tokens(tok, specials):
    """Puts <0x00> … <0xFF> after the special tokens, as SentencePiece does."""
    data = json.loads(tok.to_str())
    model = data["model"]
    order = sorted(model["vocab"], key=model["vocab"].get)
    rest = [t for t in order if t not in specials]
    model["vocab"] = {t: i for i, t in enumerate(specials + ["<0x%02X>" % b for b in range(256)] + rest)}
    model.update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    for t in data["added_tokens"]:
        t["id"] = model["vocab"][t["content"]]
    return Tokenizer.from_str(json.dumps(data))


SP_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def llama2():
    specials = ["<unk>", "<s>", "</s>"]
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.pre_tokenizer = split("▁", "merged_with_next")  # for training alone, or merges would cross words
    bpe_trained(tok, 450, specials)
    tok = with_byte_tokens(tok, specials)
    tok.pre_tokenizer = None
    tok.decoder = decoders.Sequence(SP_DECODER + [decoders.Strip(" ", 1, 0)])
    tok.post_processor = template(tok, "<s> $A")
    return tok


def metaspace_first():
    specials = ["<unk>", "<s>", "</s>"]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe_trained(tok, 450, specials)
    tok = with_byte_tokens(tok, specials)
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence(SP_DECODER + [decoders.Strip(" ", 1, 0)])
    tok.post_processor = template(tok, "<s> $A </s>")
    return tok


def gemma():
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.pre_tokenizer = split("▁", "merged_with_next")
    bpe_trained(tok, 450, specials)
    tok = with_byte_tokens(tok, specials)
    tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.decoder = decoders.Sequence(SP_DECODER)
    tok.post_processor = template(tok, "<bos> $A")
    tok.add_tokens([AddedToken(t, normalized=False) for t in ("\n\n", "▁▁", "▁▁▁", "<extra>")])
    return tok


def llama3():
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
    specials = ["<|begin_of_text|>", "<|endoftext|>"]
    tok = byte_level(600, pre_tokenizers.Sequence([split(pattern), bytes_only()]), specials, ignore_merges=True)
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template(tok, "<|begin_of_text|> $A")])
    return tok


def qwen2():
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
    tok = byte_level(600, pre_tokenizers.Sequence([split(pattern), bytes_only()]), [])
    tok.normalizer = normalizers.NFC()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok.add_tokens([AddedToken("<extra>", normalized=False), AddedToken("TOKEN", single_word=True)])
    return tok


def gpt4o():
    word = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    caps = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    pattern = word + "|" + caps + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return byte_level(500, pre_tokenizers.Sequence([split(pattern, "removed", True), bytes_only()]), ["<|endoftext|>"])


def deepseek():
    pre = pre_tokenizers.Sequence([
        split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"),
        split(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+"), bytes_only()])
    return byte_level(500, pre, ["<|endoftext|>"])


def neox():
    tok = byte_level(500, pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>", "<|padding|>"])
    tok.normalizer = normalizers.NFC()
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tok.add_tokens([" " * n for n in range(24, 1, -1)])
    return tok


def roberta():
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tok = byte_level(500, pre_tokenizers.ByteLevel(add_prefix_space=True), specials)
    tok.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
    return tok


def bloom():
    pre = pre_tokenizers.Sequence([split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), bytes_only()])
    return byte_level(500, pre, ["<unk>", "<s>", "</s>", "<pad>"])


def falcon():
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]")])
    return byte_level(500, pre, ["<|endoftext|>"])


def bert(lowercase=True):
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=450, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    tok.post_processor = template(tok, "[CLS] $A [SEP]")
    return tok


def accents():
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    tok.normalizer = normalizers.Sequence([
        normalizers.Nmt(), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous"), pre_tokenizers.Digits(True)])
    tok.decoder = decoders.WordPiece(cleanup=False)
    tok.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    tok.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tok


def unigram(byte_fallback=False):
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    tok.train_from_iterator(corpus(), trainers.UnigramTrainer(
        vocab_size=400, special_tokens=specials, unk_token="<unk>", show_progress=False))
    if byte_fallback:
        data = json.loads(tok.to_str())
        data["model"]["vocab"] += [["<0x%02X>" % b, -20.0] for b in range(256)]
        data["model"]["byte_fallback"] = True
        tok = Tokenizer.from_str(json.dumps(data))
        tok.normalizer = None
        tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tok.post_processor = template(tok, "$A </s>")
    return tok


def clip():
    tok = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tok.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        split(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", "removed", True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.BPEDecoder("</w>")
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tok


def bpe_unknown(fuse):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.train_from_iterator([line for line in corpus() if line.isascii()], trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], show_progress=False))
    return tok


def wordlevel():
    tok = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.train_from_iterator(corpus(), trainers.WordLevelTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    return tok


MAKERS = {
    "llama2": llama2, "metaspace_first": metaspace_first, "gemma": gemma, "llama3": llama3, "qwen2": qwen2, "gpt4o": gpt4o,
    "deepseek": deepseek, "neox": neox, "roberta": roberta, "bloom": bloom, "falcon": falcon, "bert": bert,
    "bert_cased": lambda: bert(False), "accents": accents, "unigram": unigram, "unigram_bytes": lambda: unigram(True),
    "clip": clip, "wordlevel": wordlevel,
    "bpe_unknown": lambda: bpe_unknown(False), "bpe_fused": lambda: bpe_unknown(True),
}


def golden(tok, lines):
    """Rows of ids, byte offsets (start, end, …), decoded text (null: the text itself), ids without special tokens (left
    out where they are the same)."""
    tok.no_truncation()
    tok.no_padding()
    rows = []
    for text in lines:
        at = [0]
        for c in text:
            at.append(at[-1] + len(c.encode()))
        enc = tok.encode(text)
        bare = tok.encode(text, add_special_tokens=False)
        decoded = tok.decode(enc.ids)
        row = [enc.ids, [at[x] for pair in enc.offsets for x in pair], None if decoded == text else decoded]
        rows.append(row + ([bare.ids] if bare.ids != enc.ids else []))
    return rows


def write(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def main():
    lines = texts()
    write("texts.json", lines)
    out = {}
    for name, make in MAKERS.items():
        path = os.path.join(HERE, name + ".json")
        if not os.path.exists(path):  # training is not repeatable to the last tie, so what is there stays
            write(name + ".json", json.loads(make().to_str()))
        out[name] = golden(Tokenizer.from_file(path), lines)
    for folder in sys.argv[1:]:
        out[os.path.basename(os.path.normpath(folder))] = golden(Tokenizer.from_file(os.path.join(folder, "tokenizer.json")), lines)
    with gzip.GzipFile(os.path.join(HERE, "golden.json.gz"), "wb", mtime=0) as f:
        f.write(json.dumps(out, separators=(",", ":")).encode())


main()
