"""A training step of NeMo AutoModel's DeepSeek-V4 on lemmata, on its TileLang backend and on its torch path, side by side.

``python -m lemmata.bench.automodel`` on a GPU takes attention of the true widths, 64 heads of 512, in four layers of the
three kinds; anywhere else the same program runs a small model, whose times say nothing. A step is forward, loss and
backward. All models have the same parameters and take turns; peak memory is counted beside what a model holds before the
step. It fails unless the losses agree to bf16.

Needs nemo-automodel, and tilelang for its backend; ``lemmata warmup`` beforehand saves the time to compile ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lemmata.integrations.automodel import apply_to, paths

WIDE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "moe_intermediate_size": 512,
    "num_attention_heads": 64,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_lora_rank": 1024,
    "o_groups": 8,
    "compress_ratios": [0, 4, 128, 4],
    "sliding_window": 128,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
}
SMALL: dict[str, Any] = WIDE | {
    "vocab_size": 256,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_attention_heads": 8,
    "head_dim": 64,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 32,
    "o_lora_rank": 16,
    "o_groups": 2,
    "compress_ratios": [0, 4, 16, 4],
    "sliding_window": 8,
    "index_head_dim": 32,
    "index_n_heads": 8,
    "index_topk": 4,
}
_COMMON: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 0,
    "dtype": "bfloat16",
}
AGREE = 2.0**-8  # of the loss: one rounding to bf16


@dataclass(frozen=True)
class Step:
    """What a step of one contender took; ``error`` says why there is none.

    Attributes:
        contender: whose.
        loss: the mean over all tokens.
        gradient: the norm of all gradients.
        ms: the median of the steps.
        spread: of the steps, as a part of the median.
        peak_mib: the most memory beside what was held before; None where it is not counted.
        ran: how many modules took which path of lemmata.
        error: what the contender raised.
    """

    contender: str
    loss: float | None = None
    gradient: float | None = None
    ms: float | None = None
    spread: float | None = None
    peak_mib: float | None = None
    ran: dict[str, int] | None = None
    error: str | None = None


def build(attn: str, sizes: dict[str, Any], device: str) -> Any:
    """Return AutoModel's model for a backend of attention, in bf16 but for what it keeps in fp32; parameters are fixed."""
    from nemo_automodel.components.models.common.utils import BackendConfig, cast_model_to_dtype
    from nemo_automodel.components.models.deepseek_v4.config import DeepseekV4Config
    from nemo_automodel.components.models.deepseek_v4.model import DeepseekV4ForCausalLM

    layers = len(sizes["compress_ratios"])
    depth = {
        "num_hidden_layers": layers,
        "num_hash_layers": layers,
    }  # by a table of tokens' experts: rounding moves none
    backend = BackendConfig(attn=attn, linear="torch", rms_norm="torch", experts="torch", dispatcher="torch")
    with torch.device(device):
        model = DeepseekV4ForCausalLM(DeepseekV4Config(**sizes, **depth, **_COMMON), backend=backend)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.1 if p.ndim < 2 else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator, device=device) * spread + ("norm" in name))
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):
                scores = torch.rand(len(buffer), _COMMON["n_routed_experts"], generator=generator, device=device)
                buffer.copy_(scores.argsort(-1)[:, : buffer.shape[1]])
    cast_model_to_dtype(model, torch.bfloat16)
    return model


def contenders(sizes: dict[str, Any], device: str) -> dict[str, Callable[[], Any]]:
    """Return by name what builds each model."""
    return {
        "lemmata": lambda: apply_to(build("torch", sizes, device), strict=True),
        "AutoModel, TileLang": lambda: build("tilelang", sizes, device),
        "AutoModel, torch": lambda: build("torch", sizes, device),
    }


def forward_backward(model: Any, tokens: Tensor) -> Tensor:
    """Return the loss of a step, whose gradients are then in the parameters."""
    model.zero_grad(set_to_none=True)
    logits = model(tokens).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _timed(model: Any, tokens: Tensor) -> tuple[float, float | None]:
    """Return milliseconds and MiB of one step."""
    model.zero_grad(set_to_none=True)
    if not tokens.is_cuda:
        start = time.perf_counter()
        forward_backward(model, tokens)
        return (time.perf_counter() - start) * 1e3, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    forward_backward(model, tokens)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end), (torch.cuda.max_memory_allocated() - held) / 2**20


def measure(builders: dict[str, Callable[[], Any]], tokens: Tensor, steps: int) -> list[Step]:
    """Return what a step takes on each contender; one that fails costs the others nothing."""
    models: dict[str, Any] = {}
    found: dict[str, Step] = {}
    for name, make in builders.items():
        try:
            model = make()
            loss = forward_backward(model, tokens)  # compiles
        except Exception as error:
            found[name] = Step(
                name, error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            continue
        squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        last = [path.last for path in paths(model).values()]
        ran = {path: last.count(path) for path in sorted(set(map(str, last)))}
        found[name] = Step(name, float(loss), float(torch.stack(squares).sum().sqrt()), ran=ran)
        models[name] = model
    times: dict[str, list[tuple[float, float | None]]] = {name: [] for name in models}
    for turn in range(steps):
        for name in models if turn % 2 == 0 else reversed(models):
            times[name].append(_timed(models[name], tokens))
    for name, taken in times.items():
        ms, peaks = [t for t, _ in taken], [m for _, m in taken if m is not None]
        middle = statistics.median(ms)
        rest = {"ms": middle, "spread": (max(ms) - min(ms)) / middle, "peak_mib": max(peaks, default=None)}
        found[name] = Step(**asdict(found[name]) | rest)
    return [found[name] for name in builders]


def disagreements(steps: Sequence[Step]) -> list[str]:
    """Return a line for each contender whose loss is not lemmata's to bf16, and one if lemmata or all others failed."""
    ours, others = steps[0], [step for step in steps[1:] if step.loss is not None]
    if ours.loss is None:
        return [f"{ours.contender}: expected a step, got {ours.error}"]
    if not others:
        return ["expected another contender to compare with, got none"]
    return [
        f"loss: expected {other.loss:.6f} of {other.contender} to one rounding of bf16, got {ours.loss:.6f}"
        for other in others
        if other.loss is not None and not abs(ours.loss - other.loss) <= AGREE * abs(other.loss)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each contender, and return 0 if the losses agree."""
    parser = argparse.ArgumentParser(prog="lemmata.bench.automodel", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, help="tokens of the one sequence; 4096 on a GPU, else 64")
    parser.add_argument("--ratios", type=int, nargs="+", help="the layers', 0 for a window alone; 0 4 128 4 on a GPU")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--out", type=Path, help="where to write what was found, as JSON")
    given = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = WIDE if device == "cuda" else SMALL
    if given.ratios:
        sizes = sizes | {"compress_ratios": given.ratios}
    count = given.tokens or (4096 if device == "cuda" else 64)
    tokens = torch.randint(0, sizes["vocab_size"], (1, count), generator=torch.Generator().manual_seed(1)).to(device)
    torch.compiler.set_stance("force_eager")  # AutoModel would compile its experts' activation, alike for all
    steps = measure(contenders(sizes, device), tokens, given.steps)
    for step in steps:
        print(_line(step))
    wrong = disagreements(steps)
    for line in wrong:
        print(line, file=sys.stderr)
    if given.out:
        card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        found = {"device": card, "torch": torch.__version__, "tokens": count, "steps": [asdict(step) for step in steps]}
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(bool(wrong))


def _line(step: Step) -> str:
    if step.loss is None:
        return f"{step.contender}: {step.error}"
    memory = "" if step.peak_mib is None else f", {step.peak_mib:.0f} MiB"
    ran = ", ".join(f"{path}: {n}" for path, n in (step.ran or {}).items())
    return (
        f"{step.contender}: {step.ms:.1f} ms (spread {step.spread or 0:.0%}){memory}, loss {step.loss:.6f}, "
        f"gradient {step.gradient:.6g}" + (f"; {ran}" if ran else "")
    )


if __name__ == "__main__":
    sys.exit(main())
