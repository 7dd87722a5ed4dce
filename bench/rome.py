"""Times the ROME authors' code on a checkpoint, one job a line on standard input, seconds on standard output.

usage: rome.py ROME_CHECKOUT CHECKPOINT FACTS THREADS
FACTS is a checkpoint with the tokenizer and, in reference/, the facts, edits and contexts. Nothing of the authors' code
is kept here: its modules are imported from the checkout, with the device "cuda" read as "cpu"; packages that only its
unused parts need are replaced by empty stand-ins where they are not installed.
jobs: trace KIND WINDOW FACT... (kind hidden, mlp or attn) · edit LAYER EDIT · evaluations (of the last edit; a number in
place of seconds) · keys LAYER ROWS T BATCHES and corpus LAYER: the second moment of keys, by a forward pass up to the
layer and a matrix product for each batch.
"""
import contextlib, importlib, importlib.machinery, io, json, os, sys, time
from unittest.mock import MagicMock

rome, path, facts, threads = *map(os.path.abspath, sys.argv[1:4]), int(sys.argv[4])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: F401

sys.dont_write_bytecode = True
for name in ("datasets", "matplotlib", "matplotlib.pyplot", "matplotlib.style", "nltk", "scipy", "scipy.sparse", "sklearn",
             "sklearn.feature_extraction", "sklearn.feature_extraction.text"):
    try:
        importlib.import_module(name)
    except ImportError:
        sys.modules[name] = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])


class OnCPU(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        return self.source_to_code(self.get_data(self.path).replace(b'"cuda"', b'"cpu"'), self.path)


def finder(folder):
    if not (os.path.abspath(folder) + os.sep).startswith(rome + os.sep):
        raise ImportError
    return importlib.machinery.FileFinder(folder, (OnCPU, [".py"]))


sys.path_hooks.insert(0, finder)
sys.path_importer_cache.clear()
sys.path.insert(0, rome)
os.chdir(rome)  # the code reads globals.yml from the current folder
causal = importlib.import_module("experiments.causal_trace")
rome_main = importlib.import_module("rome.rome_main")
compute_u = importlib.import_module("rome.compute_u")
hparams = importlib.import_module("rome.rome_hparams")

torch.set_num_threads(threads)
transformers.utils.logging.disable_progress_bar()
tok = AutoTokenizer.from_pretrained(facts)
tok.pad_token, tok.padding_side = tok.eos_token, "right"
model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
for p in model.parameters():
    p.requires_grad_(False)
model.config._name_or_path = "checkpoint"
traces = json.load(open(os.path.join(facts, "reference", "trace.json")))
edits = json.load(open(os.path.join(facts, "reference", "rome.json")))
rome_main.CONTEXT_TEMPLATES_CACHE = ["{}"] + [c + ". {}" for c in edits["contexts"]]
both = causal.ModelAndTokenizer(model=model, tokenizer=tok)
printed = ""


def trace(kind, window, *which):
    for i in which:
        f = traces["facts"][int(i)]
        causal.calculate_hidden_flow(both, f["prompt"], f["subject"], samples=traces["samples"], noise=traces["noise"],
                                     window=int(window), kind=None if kind == "hidden" else kind)


def edit(layer, which):
    global printed
    layer, e = int(layer), edits["edits"][int(which)]
    module = "transformer.h.{}.mlp.c_proj"
    key = ("checkpoint", module.format(layer))
    if key not in compute_u.inv_mom2_cache:  # ours factors C once, too
        compute_u.inv_mom2_cache[key] = torch.eye(model.transformer.h[layer].mlp.c_proj.weight.shape[0])
    h = hparams.ROMEHyperParams(
        layers=[layer], fact_token="subject_last", v_num_grad_steps=20, v_lr=0.5, v_loss_layer=model.config.n_layer - 1,
        v_weight_decay=0.5, clamp_norm_factor=e["clamp_norm_factor"], kl_factor=0.0625, mom2_adjustment=True,
        context_template_length_params=[], rewrite_module_tmp=module, layer_module_tmp="transformer.h.{}",
        mlp_module_tmp="transformer.h.{}.mlp", attn_module_tmp="transformer.h.{}.attn", ln_f_module="transformer.ln_f",
        lm_head_module="transformer.wte", mom2_dataset="wikipedia", mom2_n_samples=100000, mom2_dtype="float32")
    request = {"prompt": e["prompt"], "subject": e["subject"], "target_new": {"str": e["target_new"]}}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        rome_main.execute_rome(model, tok, request, h)
    printed = out.getvalue()


def evaluations():
    return float(sum(line.startswith("loss ") for line in printed.splitlines()))


class Stop(Exception):
    pass


def moments(layer, batches):
    kept = {}

    def keep(module, inputs):
        kept["keys"] = inputs[0]
        raise Stop

    down = model.transformer.h[int(layer)].mlp.c_proj
    total, hook = 0, down.register_forward_pre_hook(keep)
    with torch.no_grad():
        for ids in batches:
            with contextlib.suppress(Stop):
                model.transformer(input_ids=ids, use_cache=False)
            k = kept["keys"].reshape(-1, kept["keys"].shape[-1])
            total = total + k.T @ k
    hook.remove()
    return total


def keys(layer, rows, t, n):
    rows, t, n = int(rows), int(t), int(n)
    ids = torch.tensor([[(i * 7919 + r * 104729) % model.config.vocab_size for i in range(t)] for r in range(rows * n)])
    moments(layer, ids.split(rows))


lines = [tok(s.rstrip("\n"))["input_ids"] for s in open(os.path.join(facts, "corpus.txt"))]


def corpus(layer):
    by_length = {}
    for ids in lines:
        if ids:
            by_length.setdefault(len(ids), []).append(ids)
    moments(layer, (x for n, same in sorted(by_length.items()) for x in torch.tensor(same).split(max(1, 2048 // n))))


jobs = {"trace": trace, "edit": edit, "evaluations": evaluations, "keys": keys, "corpus": corpus}
print("ready", torch.__version__, transformers.__version__, flush=True)
for line in sys.stdin:
    name, *args = line.split()
    start = time.perf_counter()
    got = jobs[name](*args)
    print(got if isinstance(got, float) else time.perf_counter() - start, flush=True)
