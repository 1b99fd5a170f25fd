"""What an eager decode step of a DeepSeek-V4 costs, untouched and on lemmata, and what the host spends inside lemmata's calls.

The model is transformers', with the four layers of ``tiny_model`` (a window, CSA, HCA, CSA) at the widths of Flash, in bf16; a
layer has 8 experts, of which a token gets 6. Both have the same parameters, each its own cache of 4096 tokens; they take turns,
and each reads a token a step.

- A step is the time from its call until the card has finished it.
- The host's part is the time between the call of a public function of lemmata and its return, launches included, summed over
  a step. A function that another one calls is a part of the outer one.

``python -m lemmata.bench.decode_step`` runs it on a GPU and writes ``bench/results/decode_step/<gpu>.json``.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

import lemmata
from lemmata.bench.layer import FLASH
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to
from lemmata.models import DEEPSEEK_V4
from lemmata.operators import OPERATORS
from lemmata.record import installed
from lemmata.warmup import cores, kernels, side_by_side, to_disk

TOKENS, WARM, STEPS = 4096, 8, 64
RESULTS = Path(__file__).parent / "results" / "decode_step"
COMPILED = "mhc", "swa", "csa", "hca", "compressor", "indexer", "topk"
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 2048, "n_routed_experts": 8, "num_experts_per_tok": 6}

Hosts = dict[str, list[float]]
"""Seconds that the host spent in each call, by the public function."""


class Step(NamedTuple):
    """What one step took: milliseconds, and what the host spent inside lemmata."""

    ms: float
    inside: Hosts


@contextmanager
def timed() -> Iterator[Hosts]:
    """Time every outermost call of a public function of lemmata while this lasts."""
    found: Hosts = defaultdict(list)
    depth = 0

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                if not depth:
                    found[name].append(time.perf_counter() - begin)

        return call

    with ExitStack() as stack:
        for name in {name for operator in OPERATORS.values() for name in operator.public}:
            stack.enter_context(patch.object(lemmata, name, clocked(name, getattr(lemmata, name))))
        yield found


def models(device: str, **config: Any) -> dict[str, Any]:
    """Return the untouched model and the one on lemmata, of the same parameters; ``config`` overrides Flash's."""
    theirs = tiny_model(**FLASH | EXPERTS | config).to(device, torch.bfloat16)
    return {"transformers": theirs, "lemmata": apply_to(copy.deepcopy(theirs), strict=True)}


def decoders(found: Mapping[str, Any], tokens: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return for each model what reads one more token ``[1, 1]`` after so many random ones and returns its logits."""
    device = next(iter(found.values())).device
    prompt = torch.randint(256, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)

    def decoder(model: Any) -> Callable[[Tensor], Tensor]:
        cache = model(prompt, use_cache=True).past_key_values
        return lambda token: model(token, past_key_values=cache, use_cache=True).logits

    return {name: decoder(model) for name, model in found.items()}


def step(decode: Callable[[Tensor], Tensor], token: Tensor) -> Step:
    """Return what a step took."""

    def wait() -> None:
        if token.is_cuda:
            torch.cuda.synchronize()

    wait()
    with timed() as inside:
        begin = time.perf_counter()
        decode(token)
        wait()
        return Step((time.perf_counter() - begin) * 1e3, dict(inside))


def steps(found: Mapping[str, Callable[[Tensor], Tensor]], device: str, count: int) -> dict[str, list[Step]]:
    """Return so many steps of each model, which take turns."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    taken: dict[str, list[Step]] = {name: [] for name in found}
    for _ in range(count):
        for name, decode in found.items():
            taken[name].append(step(decode, token))
    return taken


def row(model: str, taken: Sequence[Step]) -> dict[str, Any]:
    """Return a row of the record: the medians of a step, of the host's part inside lemmata, and of a call of each function.

    ``calls`` is how many of these a step has on average: compressors make an entry in some steps only.
    """
    names = dict.fromkeys(name for one in taken for name in one.inside)
    return {
        "model": model,
        "step_ms": round(statistics.median(one.ms for one in taken), 3),
        "inside_ms": round(1e3 * statistics.median(sum(map(sum, one.inside.values())) for one in taken), 4),
        "calls": {
            name: {
                "calls": round(statistics.mean(len(one.inside.get(name, ())) for one in taken), 2),
                "host_us": round(1e6 * statistics.median(t for one in taken for t in one.inside.get(name, ())), 2),
            }
            for name in names
        },
    }


def main() -> None:
    """Time both models, print a line for each and write the record.

    Raises:
        RuntimeError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("expected a CUDA device, got none")
    list(side_by_side(((to_disk, *kernel) for kernel in kernels(COMPILED, DEEPSEEK_V4[:1])), cores()))
    with torch.inference_mode():
        taken = steps(decoders(models("cuda"), TOKENS), "cuda", WARM + STEPS)
    gpu, rows = torch.cuda.get_device_name(), [row(name, all_[WARM:]) for name, all_ in taken.items()]
    for line in rows:
        print(*(f"{key} {value}" for key, value in line.items()), sep=", ")
    versions = {package: installed(package) for package in ("torch", "transformers", "tilelang")}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{re.sub('[^a-z0-9]+', '-', gpu.lower())}.json"
    file.write_text(json.dumps({"device": gpu, "versions": versions, "tokens": TOKENS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
