"""Times eager PyTorch on a checkpoint, one job a line on standard input, seconds on standard output.

usage: peer.py CHECKPOINT THREADS
jobs: routes T · forward B T · gradient B T · generate N "prompt ids" (greedy, transformers' generate) · knowledge T STEPS
forward computes logits of the last position only, as engram does; gradient adds the backward pass for activations
(weights need no gradient) from logit 7 − logit 11 at the last position of every row. knowledge is captum's way to integrated gradients of log P(7) by the coefficients of the
last position: for each layer a whole forward pass with a row for each step, and a backward pass to that layer.
triggers B T N K is a loop over N such batches that keeps the coefficients of a batch by
forward hooks, takes the best position of every row, and merges the rows with the K best so far by torch.topk. peak JOB
prints MiB instead of seconds, the largest resident size during the job. attributions FILE T STEPS writes what knowledge
T STEPS finds, float32 by layer and memory.
"""
import os, sys, time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
import transformers

path, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
transformers.utils.logging.disable_progress_bar()
model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
for p in model.parameters():
    p.requires_grad_(False)


def ids(b, t):
    return torch.tensor([[(i * 7919 + r * 104729) % model.config.vocab_size for i in range(t)] for r in range(b)])


def forward(b, t):
    with torch.no_grad():
        return model(input_ids=ids(b, t), use_cache=False, logits_to_keep=1).logits


def gradient(b, t):
    x = model.get_input_embeddings()(ids(b, t)).requires_grad_(True)
    logits = model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, -1]
    (logits[:, 7] - logits[:, 11]).sum().backward()
    return x.grad


def generate(n, *prompt):
    x = torch.tensor([list(map(int, prompt))])
    with torch.no_grad():
        return model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, min_new_tokens=n, do_sample=False)


def knowledge(t, steps):
    blocks, out = model.transformer.h, []
    x = ids(1, t)
    kept = {}
    hooks = [b.mlp.c_proj.register_forward_pre_hook(lambda _, a, l=l: kept.__setitem__(l, a[0][0, -1])) for l, b in enumerate(blocks)]
    with torch.no_grad():
        model(input_ids=x, use_cache=False, logits_to_keep=1)
    for h in hooks:
        h.remove()
    alpha = ((torch.arange(steps) + 0.5) / steps)[:, None]
    for l, b in enumerate(blocks):
        scaled = (alpha * kept[l]).requires_grad_(True)
        hook = b.mlp.c_proj.register_forward_pre_hook(lambda _, a: (torch.cat([a[0][:, :-1], scaled[:, None]], 1),))
        logits = model(input_ids=x.expand(steps, -1), use_cache=False, logits_to_keep=1).logits[:, -1]
        hook.remove()
        grad, = torch.autograd.grad(torch.log_softmax(logits, -1)[:, 7].sum(), scaled)
        out.append(kept[l] * grad.mean(0))
    return torch.stack(out)


def triggers(b, t, n, k):
    blocks, kept = model.transformer.h, {}
    hooks = [h.mlp.c_proj.register_forward_pre_hook(lambda _, a, l=l: kept.__setitem__(l, a[0])) for l, h in enumerate(blocks)]
    d = blocks[0].mlp.c_proj.weight.shape[0]
    best = torch.full((len(blocks), k, d), -torch.inf)
    where = torch.full((len(blocks), k, d, 2), -1, dtype=torch.int32)
    with torch.no_grad():
        for i in range(n):
            model.transformer(input_ids=ids(b, t), use_cache=False)
            for l, x in kept.items():
                value, position = x[:, 1:].max(1)
                sequence = torch.arange(i * b, (i + 1) * b, dtype=torch.int32)[:, None].expand(b, d)
                found = torch.cat([where[l], torch.stack([sequence, position.int() + 1], -1)])
                best[l], index = torch.topk(torch.cat([best[l], value]), k, 0)
                where[l] = found.gather(0, index[..., None].expand(k, d, 2))
            kept.clear()
    for h in hooks:
        h.remove()
    return best, where


def parts(b, t):
    """Per layer what the public information-flow tool computes: the vector of every head and source [T,T,H,d], its L1
    distance to the state behind attention, and the same of the stream and of the FFN."""
    kept = {}
    hooks = []
    for l, block in enumerate(model.transformer.h):
        hooks.append(block.attn.c_attn.register_forward_hook(lambda _, a, y, l=l: kept.__setitem__(("qkv", l), y[0])))
        hooks.append(block.attn.c_proj.register_forward_hook(lambda _, a, y, l=l: kept.__setitem__(("attn", l), y[0])))
        hooks.append(block.mlp.register_forward_hook(lambda _, a, y, l=l: kept.__setitem__(("ffn", l), y[0])))
    with torch.no_grad():
        out = model(input_ids=ids(b, t), use_cache=False, output_attentions=True, output_hidden_states=True)
    for h in hooks:
        h.remove()
    heads, width = model.config.n_head, model.config.n_embd
    distance = lambda z, y: torch.nn.functional.pairwise_distance(z, y, p=1)
    graph = []
    with torch.no_grad():
        for l, block in enumerate(model.transformer.h):
            x, value = out.hidden_states[l][0], kept["qkv", l][:, 2 * width:].reshape(t, heads, -1)
            mid = x + kept["attn", l]
            project = block.attn.c_proj.weight.reshape(heads, -1, width)
            z = torch.einsum("hij,jhe,hed->ijhd", out.attentions[l][0], value, project)
            size = mid.abs().sum(-1)
            heads_near = (size[:, None, None] - distance(z, mid[:, None, None].expand_as(z))).clamp(min=1e-5)
            stream = (size - distance(x, mid)).clamp(min=1e-5)
            total = heads_near.sum((1, 2)) + stream
            after = mid + kept["ffn", l]
            both = torch.stack([distance(mid, after), distance(kept["ffn", l], after)])
            near = (after.abs().sum(-1) - both).clamp(min=1e-5)
            graph.append((heads_near / total[:, None, None], stream / total, near / near.sum(0)))
    return graph


def routes(t, tau=0.04):
    """The parts of all states, and the edges above tau that lead to the last one."""
    graph = parts(1, t)
    reached, edges = {t - 1}, []
    for l in reversed(range(len(graph))):
        attn, stream, both = graph[l]
        below = set()
        for i in reached:
            edges += [("I", l, i)] * int((both[:, i] > tau).sum())
            for j, h in (attn[i] > tau).nonzero().tolist():
                edges.append(("A", l, i, j, h))
                below.add(j)
            if stream[i] > tau:
                below.add(i)
        reached = below
    return edges


def peak(name, *args):
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    run(name, *args)
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024


def attributions(path, *args):
    knowledge(*map(int, args)).detach().numpy().tofile(path)


def run(name, *args):
    if name in words:
        return words[name](*args)
    return jobs[name](*map(int, args))


jobs = {"triggers": triggers, "forward": forward, "gradient": gradient, "generate": generate, "knowledge": knowledge, "routes": routes}
words = {"peak": peak, "attributions": attributions}
print("ready", torch.__version__, transformers.__version__, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    got = run(*line.split())
    print(got if isinstance(got, float) else time.perf_counter() - start, flush=True)
