"""The time and the memory of one training step of a DeepSeek-V4 with true attention widths, on lemmata and untouched.

The model is transformers', with the four layers of ``tiny_model`` (a window, CSA, HCA, CSA), hidden width 1024 and bf16
parameters; attention and indexer are as wide as DeepSeek-V4-Flash's. A step is a forward over one sequence of random bytes, the
backward and AdamW. Both models begin with the same parameters and take turns, so that a card that slows down slows both.

``python -m lemmata.bench.training`` runs it on a GPU and writes ``bench/results/training/<gpu>.json``.
"""

from __future__ import annotations

import copy
import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths
from lemmata.record import installed
from lemmata.warmup import cores, kernels, side_by_side, to_disk

LENGTHS = 2048, 8192
WARM, STEPS = 3, 10
RESULTS = Path(__file__).parent / "results" / "training"
WIDTHS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_attention_heads": 64,
    "head_dim": 512,
    "partial_rotary_factor": 64 / 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 256,
    "moe_intermediate_size": 512,
    "sliding_window": 128,
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "max_position_embeddings": 16384,
    "experts_implementation": "grouped_mm",
}


class Cost(NamedTuple):
    """What a step costs: its milliseconds, the GiB that it needs at most with all parameters, and its last loss."""

    ms: float
    gib: float
    loss: float


Step = Callable[[], torch.Tensor]
"""A step, which returns its loss."""


def models(device: str, **config: Any) -> dict[str, Any]:
    """Return both models by name: lemmata runs whole, or it raises."""
    untouched = tiny_model(**WIDTHS | config).to(device, torch.bfloat16).train()
    return {"lemmata": apply_to(copy.deepcopy(untouched), strict=True), "transformers": untouched}


def step_of(model: Any, tokens: torch.Tensor) -> Step:
    """Return the step of a model on these tokens, ``[1, n]``."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss: torch.Tensor = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.detach()

    return step


def cost(steps: dict[str, Step]) -> Iterator[tuple[str, Cost | None]]:
    """Yield what a step of each model costs, in turns; None: the card has too little memory for it."""
    peaks = {name: _peak(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name, peak in peaks.items() if peak is not None}
    losses: dict[str, float] = {}
    for _ in range(STEPS):
        for name, mine in times.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            losses[name] = steps[name]().item()
            end.record()
            end.synchronize()
            mine.append(begin.elapsed_time(end))
    for name, peak in peaks.items():
        yield (
            name,
            None if peak is None else Cost(round(statistics.median(times[name]), 2), peak, round(losses[name], 4)),
        )


def _peak(step: Step) -> float | None:
    """Return the GiB that a step needs at most, after steps that compile and fill caches."""
    try:
        for _ in range(WARM):
            step()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def main() -> None:
    """Time both models at each length, print a line for each and write the record.

    Raises:
        RuntimeError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("expected a CUDA device, got none")
    list(side_by_side(((to_disk, *kernel) for kernel in kernels()), cores()))
    gpu, rows = torch.cuda.get_device_name(), []
    for length in LENGTHS:
        torch.manual_seed(0)
        tokens = torch.randint(256, (1, length), device="cuda")
        both = models("cuda")
        for name, found in cost({name: step_of(model, tokens) for name, model in both.items()}):
            rows.append({"tokens": length, "model": name} | (found._asdict() if found else {"ms": None, "gib": None}))
            print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
        ran = {str(path.last) for path in paths(both["lemmata"]).values()}
        print("by", ", ".join(sorted(ran)), flush=True)
    versions = {package: installed(package) for package in ("torch", "transformers", "tilelang")}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{re.sub('[^a-z0-9]+', '-', gpu.lower())}.json"
    file.write_text(json.dumps({"device": gpu, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
