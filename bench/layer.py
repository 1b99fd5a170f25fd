"""What hyper-connections cost a layer of DeepSeek-V4 Flash, forward and backward: on transformers' own code, and on lemmata.

The layer is transformers', at the widths of Flash, of the kind that selects entries: its attention runs on lemmata throughout.
A dense gated layer as wide as the experts that a token activates, six and the shared one of 2048, stands for the experts.
The contenders have the same parameters and take turns:

    transformers   the layer's own hyper-connections
    one by one     ``mhc_pre`` and ``mhc_post``, and the layer's own norm, as ``apply_to`` has them
    fused          ``mhc_post_pre`` between attention and experts, which is the norm of the experts as well
    none           no streams and no hyper-connections: both norms, attention and experts alone

A step is forward and backward, to the streams and to every parameter. The share of hyper-connections is the part of a time
that the layer without them does not take.

``python -m lemmata.bench.layer`` runs it on a GPU and writes ``bench/results/layer/<gpu>.json``.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lemmata
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to
from lemmata.models import DEEPSEEK_V4
from lemmata.record import installed
from lemmata.warmup import cores, kernels, side_by_side, to_disk

TOKENS = 4096
WARM, STEPS = 3, 20
NONE = "none"
AGREE = 2.0**-6  # of the streams: transformers rounds coefficients, products and sums to bf16 each
RESULTS = Path(__file__).parent / "results" / "layer"
OPERATORS = "mhc", "csa", "compressor", "indexer", "topk"
ACTIVATED = 7  # experts of a token
FLASH: dict[str, Any] = {
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "head_dim": 512,
    "partial_rotary_factor": 64 / 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "sliding_window": 128,
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "max_position_embeddings": 16384,
}
ONE_LAYER: dict[str, Any] = {
    "num_hidden_layers": 1,
    "layer_types": ["compressed_sparse_attention"],
    "mlp_layer_types": ["moe"],
}


class Dense(nn.Module):
    """A gated layer that stands for the experts."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(hidden, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """Return what it makes of rows ``[B, S, hidden]``; nothing depends on the tokens themselves."""
        result: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return result


class Contender(NamedTuple):
    """A layer: what it makes of its input, the input, and its parameters."""

    run: Callable[[Tensor], Tensor]
    given: Tensor
    parameters: tuple[nn.Parameter, ...]


class Cost(NamedTuple):
    """Milliseconds of a forward, and of a step."""

    forward: float
    step: float


def fused(layer: Any, streams: Tensor, input_ids: Tensor | None = None, **kwargs: Any) -> Tensor:
    """Return what a decoder layer makes of streams ``[B, S, hc, hidden]``, from attention to experts by one operator."""
    site, norm = layer.ffn_hc, layer.post_attention_layernorm
    weights = site.fn, site.scale, site.base, norm.weight
    how = {"iterations": site.hc_sinkhorn_iters, "eps": site.hc_eps, "norm_eps": norm.variance_epsilon}
    post, comb, collapsed = layer.attn_hc(streams)
    result, _ = layer.self_attn(layer.input_layernorm(collapsed), **kwargs)
    streams, row, post, comb = lemmata.mhc_post_pre(streams, result, post, comb, *(w.float() for w in weights), **how)
    return lemmata.mhc_post(streams, layer.mlp(row, input_ids=input_ids), post, comb)


def alone(layer: Any, row: Tensor, input_ids: Tensor | None = None, **kwargs: Any) -> Tensor:
    """Return what attention and experts, each behind its norm, make of rows ``[B, S, hidden]``."""
    result, _ = layer.self_attn(layer.input_layernorm(row), **kwargs)
    made: Tensor = layer.mlp(layer.post_attention_layernorm(result), input_ids=input_ids)
    return made


def contenders(device: str, tokens: int, width: int = 2048, **config: Any) -> dict[str, Contender]:
    """Return every contender by name, on random tokens and streams. Parameters are bf16, those of hyper-connections fp32.

    Args:
        device: where they are.
        tokens: of the one sequence.
        width: of an expert.
        **config: overrides of Flash's configuration.
    """
    torch.manual_seed(0)
    model = tiny_model(**FLASH | ONE_LAYER | config).to(device, torch.bfloat16)
    theirs, hidden = model.model.layers[0], model.config.hidden_size
    theirs.mlp = Dense(hidden, ACTIVATED * width).to(device, torch.bfloat16)
    for site in (theirs.attn_hc, theirs.ffn_hc):
        site.float()
    apply_to(model, only=("attention", "compressor", "indexer"), strict=True)
    told = handed(model, torch.randint(256, (1, tokens), device=device))
    ours = apply_to(copy.deepcopy(theirs), only=("mhc_pre", "mhc_post"), strict=True)
    streams = torch.randn(1, tokens, model.config.hc_mult, hidden, device=device).bfloat16().requires_grad_()
    row = streams.detach()[:, :, 0].clone().requires_grad_()
    runs: dict[str, tuple[Callable[..., Tensor], Tensor, nn.Module]] = {
        "transformers": (theirs, streams, theirs),
        "one by one": (ours, streams, ours),
        "fused": (functools.partial(fused, ours), streams, ours),
        NONE: (functools.partial(alone, theirs), row, theirs),
    }
    return {
        name: Contender(functools.partial(run, **told), given, tuple(layer.parameters()))
        for name, (run, given, layer) in runs.items()
    }


def handed(model: Any, tokens: Tensor) -> dict[str, Any]:
    """Return what a model hands its one layer beside the streams, for these tokens."""
    found: dict[str, Any] = {}
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, __, given: found.update(given), with_kwargs=True)
    with torch.no_grad():
        model(tokens, use_cache=False)
    hook.remove()
    return found


def gradients(of: Contender, out: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of a contender's input and of its parameters; None of what has none."""
    leaves = of.given, *of.parameters
    return torch.autograd.grad(out, leaves, grad, allow_unused=True)


def check(found: Mapping[str, Contender]) -> None:
    """Raise RuntimeError unless every layer with streams makes the same of them, but for roundings to bf16."""
    with torch.no_grad():
        wanted = found["transformers"].run(found["transformers"].given).float()
        for name, of in found.items():
            if name != NONE and not (apart := distance(of.run(of.given), wanted)) <= AGREE:
                raise RuntimeError(f"{name}: expected the streams of transformers, got some that differ by {apart:.1e}")


def distance(got: Tensor, wanted: Tensor) -> float:
    """Return how far a tensor is from another, of the other's norm."""
    got, wanted = got.detach().float(), wanted.detach().float()
    return float((got - wanted).norm() / wanted.norm())


def costs(found: Mapping[str, Contender]) -> dict[str, Cost]:
    """Return the medians of every contender on a GPU, which take turns."""
    grads = {name: torch.randn_like(of.given) for name, of in found.items()}
    times: dict[str, list[Cost]] = {name: [] for name in found}
    for turn in range(WARM + STEPS):
        for name, of in found.items():
            begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
            begin.record()
            out = of.run(of.given)
            middle.record()
            gradients(of, out, grads[name])
            end.record()
            end.synchronize()
            if turn >= WARM:
                times[name].append(Cost(begin.elapsed_time(middle), begin.elapsed_time(end)))
    return {name: Cost(*map(statistics.median, zip(*mine, strict=True))) for name, mine in times.items()}


def rows(found: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """Return a row of the record for each contender: its times, and which parts of them are hyper-connections."""
    rest = found[NONE]
    shares = {name: [1 - b / a for a, b in zip(cost, rest, strict=True)] for name, cost in found.items()}
    return [
        {
            "connections": name,
            "forward_ms": round(cost.forward, 3),
            "step_ms": round(cost.step, 3),
            "forward_share": round(shares[name][0], 4),
            "step_share": round(shares[name][1], 4),
        }
        for name, cost in found.items()
    ]


def main() -> None:
    """Time all contenders, print a line for each and write the record.

    Raises:
        RuntimeError: there is no GPU, or the layers do not agree.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("expected a CUDA device, got none")
    list(side_by_side(((to_disk, *kernel) for kernel in kernels(OPERATORS, DEEPSEEK_V4[:1])), cores()))
    found = contenders("cuda", TOKENS)
    check(found)
    gpu, measured = torch.cuda.get_device_name(), rows(costs(found))
    for row in measured:
        print(*(f"{key} {value}" for key, value in row.items()), sep=", ")
    versions = {package: installed(package) for package in ("torch", "transformers", "tilelang")}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{re.sub('[^a-z0-9]+', '-', gpu.lower())}.json"
    file.write_text(
        json.dumps({"device": gpu, "versions": versions, "tokens": TOKENS, "rows": measured}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
