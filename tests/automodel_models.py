"""A small DeepSeek-V4 of NeMo AutoModel, batches for it, and its logits and gradients with the same choices."""

from collections import Counter
from contextlib import contextmanager
from functools import partial

import torch
from nemo_automodel.components.models.common.utils import BackendConfig, cast_model_to_dtype
from nemo_automodel.components.models.deepseek_v4.config import DeepseekV4Config
from nemo_automodel.components.models.deepseek_v4.model import DeepseekV4ForCausalLM
from torch.nn.functional import cross_entropy

from lemmata.integrations.observe import Dispatches, Double

BF16, LENGTH = torch.bfloat16, 64
IDS = torch.randint(1, 256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
SMALL = 256  # numbers
KINDS = "swa", "csa", "hca"
BY_POSITION = {"swa": 1, "csa": 2, "hca": 1}
BY_ROWS = {"csa": 4}
_CONFIG = {
    "vocab_size": 256,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 64,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 32,
    "o_lora_rank": 16,
    "o_groups": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "compress_ratios": [0, 4, 16, 4],  # a sliding window, csa, hca, csa
    "sliding_window": 8,
    "num_hash_layers": 4,  # a token's experts are a table's: no choice that rounding could move
    "index_head_dim": 32,
    "index_n_heads": 8,
    "index_topk": 4,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 2048,
}

torch.compiler.set_stance("force_eager")  # AutoModel compiles its experts' activation, which takes longer than a test


def tiny(dtype=torch.float32, attn="torch", **config):
    """A random model whose parameters are drawn wide, in the dtypes that AutoModel's training has."""
    name = {torch.float32: "float32", torch.float64: "float32", BF16: "bfloat16"}[dtype]
    backend = BackendConfig(attn=attn, linear="torch", rms_norm="torch", experts="torch", dispatcher="torch")
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**_CONFIG | config, dtype=name), backend=backend)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.5 if p.ndim < 2 else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * spread + ("norm" in name))
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):
                scores = torch.rand(len(buffer), model.config.n_routed_experts, generator=generator)
                buffer.copy_(scores.argsort(-1)[:, : buffer.shape[1]])
    if dtype is torch.float64:
        return model.double()
    cast_model_to_dtype(model, dtype)
    return model


def masked(*hidden):
    mask = torch.ones_like(IDS)
    for row, columns in hidden:
        mask[row, columns] = 0
    return mask


def packed(*lengths, **how):
    return {"qkv_format": "thd", "seq_lens": torch.tensor(lengths), **how}


RESTART = torch.stack([torch.cat([torch.arange(20), torch.arange(44)]), torch.arange(32).repeat(2)])
CALLS = {
    "nothing said": ({}, BY_POSITION),
    "a mask of ones": ({"attention_mask": masked()}, BY_POSITION),
    "positions": ({"position_ids": torch.arange(LENGTH)[None]}, BY_POSITION),
    "later positions": ({"position_ids": 9 + torch.arange(LENGTH)[None]}, BY_POSITION),
    "padded right": ({"attention_mask": masked((1, slice(-9, None)))}, BY_ROWS),
    "padded left": ({"attention_mask": masked((0, slice(0, 5)))}, BY_ROWS),
    "padded within": ({"attention_mask": masked((0, slice(20, 23)))}, BY_ROWS),
    "packed": (packed([20, 44], [32, 32]), BY_ROWS),
    "packed, positions that restart": (packed([20, 44], [32, 32], position_ids=RESTART), BY_ROWS),
    "packed and padded": (packed([20, 40], [31, 0]), BY_ROWS),
}


class Picks:
    """The entries that a model's indexers choose, recorded in one run and kept to in others."""

    def __init__(self):
        self._recorded = {}

    @contextmanager
    def record(self, model):
        """Record every choice."""
        with _watched(model, self._recorded.__setitem__):
            yield

    @contextmanager
    def keep(self, model, part=(slice(None), slice(None))):
        """Hold a model to the choices of these rows and queries; yields how many chose, and how many otherwise."""
        rows = Counter()

        def kept(name, own):
            recorded = self._recorded[name][part].to(own.device)
            rows.update(made=own.shape[:2].numel())
            rows.update(moved=int((own.sort(-1).values != recorded.sort(-1).values).any(-1).sum()))
            return recorded

        with _watched(model, kept):
            yield rows


@contextmanager
def _watched(model, see):
    """Show each compressor's choice, in which the entries that a query may not see are -1, and take what is returned."""

    def hook(_, args, output, name):
        if output[1] is None:
            return None
        kept = see(name, output[1])
        return None if kept is None else (output[0], kept, *output[2:])

    compressors = ((name, module) for name, module in model.named_modules() if name.endswith("compressor"))
    handles = [module.register_forward_hook(partial(hook, name=name)) for name, module in compressors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on(device, batch):
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}


def run(model, ids=IDS, **how):
    """The logits and other results, and the gradient of each parameter that has one, on the model's device."""
    model.zero_grad()
    device = next(model.parameters()).device
    ids, how = ids.to(device), on(device, how)
    out = model(ids, **how)
    results = {"logits": out.logits, **{f"depth {i}": h for i, h in enumerate(out.mtp_per_depth_h or ())}}
    loss = cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    sum((h.square().mean() for h in out.mtp_per_depth_h or ()), loss).backward()
    grads = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {name: result.detach() for name, result in results.items()} | grads


def whole(grad):
    return grad.full_tensor() if hasattr(grad, "full_tensor") else grad


def counted(model, ids=IDS, **how):
    """What `run` returns, and how often each operator was called."""
    calls = Dispatches()
    with calls:
        results = run(model, ids, **how)
    return results, calls.calls


def of_attention(calls):
    return {op: n for op, n in calls.items() if op in KINDS}


def errors(results, right):
    """The relative error of each large tensor, and of all small ones as one: a few numbers may err by luck alone."""
    small = [n for n in right if right[n].numel() < SMALL]
    apart = {n: results[n].double().to(right[n].device) - right[n] for n in right}
    of = {n: float(apart[n].norm() / right[n].norm()) for n in right if n not in small}
    joined = (torch.cat([x[n].flatten() for n in small]) for x in (apart, right))
    return of | {"small ones": float(torch.div(*(x.norm() for x in joined)))}


def beyond(results, plain, right):
    """Each tensor whose error exceeds twice the untouched model's: that error beside this."""
    assert results.keys() == plain.keys() == right.keys()
    ours, theirs = errors(results, right), errors(plain, right)
    return {n: (ours[n], theirs[n]) for n in ours if not ours[n] <= 2 * theirs[n]}


def exact(model, picks, ids=IDS, **how):
    """What a model in fp64 computes with the same parameters and choices."""
    with picks.keep(model), Double():
        return run(model, ids, **how)
