"""The main job: a small DeepSeek-V4 from transformers reads real text, untouched and then on lemmata's operators."""

from __future__ import annotations

import copy
import json
import logging
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from .info import BACKENDS
from .integrations.compare import Phase, compare, decode_apart
from .integrations.tiny import tiny_model
from .integrations.transformers import apply_to, swapped, undo
from .operators import of_function
from .terminal import columns, console, facts

_BOTH = "mhc_pre", "mhc_post", "mhc_head", "compress"
CALLED = {torch.float32: ("sinkhorn", "topk"), torch.bfloat16: (*_BOTH, "indexer_topk", "swa", "csa", "hca")}
"""The dtypes that the model runs in, and the operators that it must then call."""
PADDED = {torch.float32: ("sinkhorn", "topk"), torch.bfloat16: (*_BOTH, "indexer_scores", "topk", "csa")}
"""The same for a padded batch, whose windows ``csa`` reads off the mask in every layer."""
MOVED = 0.01  # the share of choices that near ties may account for, besides twice those that fp64 moves


@dataclass(frozen=True)
class Report:
    """What the main job found. It holds if there are no ``failures``, each of which is one line."""

    text: str
    device: str
    versions: dict[str, str]
    swapped: dict[str, tuple[str, ...]]
    backends: dict[str, str]
    phases: tuple[Phase, ...]
    decode_apart: dict[str, float]
    """How far the logits of decode are from those of prefill in fp32, untouched and swapped."""
    failures: tuple[str, ...]


def default_text() -> Path:
    """Return the documentation of Python's syntax, which every CPython carries."""
    spec = find_spec("pydoc_data.topics")
    if spec is None or spec.origin is None:
        raise ValueError("text: expected a file, got none, and this Python carries no documentation")
    return Path(spec.origin)


def passages(text: Path, length: int) -> Tensor:
    """Return two passages of the file, its beginning and its middle: their bytes as token ids ``[2, length]``."""
    data = text.read_bytes()
    if len(data) < 2 * length:
        raise ValueError(f"text: expected at least {2 * length} bytes, got {len(data)} in {text}")
    return torch.tensor([list(data[start : start + length]) for start in (0, len(data) // 2)])


@contextmanager
def _alone() -> Iterator[None]:
    """Run on one thread, since small tensors cost more to hand out; warn of nothing, since the report has all."""
    threads, logger = torch.get_num_threads(), logging.getLogger("lemmata")
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)


def _named() -> list[str]:
    """Return the operators that some phase must call, each once."""
    return list(dict.fromkeys(op for called in (*CALLED.values(), *PADDED.values()) for op in called))


def _backend(op: str, device: str) -> str:
    operator = of_function(op)
    return f"{BACKENDS[device if operator and operator.kernels else 'cpu']} on {device}"


def _failures(phase: Phase) -> Iterator[str]:
    name = f"{phase.name} in {phase.dtype}"
    called = PADDED if phase.name == "padded" else CALLED
    for op in called[getattr(torch, phase.dtype)]:
        if not phase.calls.get(op):
            yield f"{name}: {op} was never called"
    if not phase.difference <= phase.bound:  # NaN fails too
        yield f"{name}: logits differ by {phase.difference:.1e}, more than {phase.bound:.1e}"
    explained = 2 * phase.choices_inexact + MOVED * phase.choices
    if phase.first_token_apart is None and phase.choices_moved > explained:
        yield f"{name}: {phase.choices_moved} of {phase.choices} choices moved, near ties explain {explained:.0f}"


def run(
    text: Path | None = None,
    *,
    length: int = 256,
    steps: int = 32,
    say: Callable[[str], object] = lambda line: None,
) -> Report:
    """Compare the model with itself on two passages of a text, on the GPU if there is one.

    Args:
        text: any file of at least two passages; by default `default_text`.
        length: bytes in a passage.
        steps: how many of them are decoded one by one, and how many tokens are generated.
        say: is told a line when the model has run in one dtype.

    Raises:
        ValueError: the text is too short, or ``steps`` does not fit in ``length``.
        UnknownVersionError: transformers is absent, or of a version that is not known.
    """
    if not 1 <= steps < length:
        raise ValueError(f"steps: expected a value in [1, {length - 1}], got {steps}")
    text = text or default_text()
    ids = passages(text, length)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = ids.to(device)
    phases: list[Phase] = []
    with _alone():
        model = tiny_model().to(device)
        names = swapped(apply_to(model))
        undo(model)
        apart = decode_apart(model, ids, steps)
        for dtype in CALLED:
            rounded = copy.deepcopy(model).to(dtype)
            start = time.perf_counter()
            phases += compare(rounded, copy.deepcopy(rounded).double(), ids, steps)
            say(f"{str(dtype).removeprefix('torch.')}: compared in {time.perf_counter() - start:.1f} s")
    devices = {op: device for phase in phases for op, device in phase.devices.items()}
    return Report(
        text=str(text),
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        versions={package: version(package) for package in ("torch", "transformers")},
        swapped=names,
        backends={op: _backend(op, devices[op]) for op in _named() if op in devices},
        phases=tuple(phases),
        decode_apart=dict(zip(("untouched", "swapped"), apart, strict=True)),
        failures=(
            *(() if names else ("nothing was swapped",)),
            *(failure for phase in phases for failure in _failures(phase)),
        ),
    )


def print_report(report: Report, *, as_json: bool = False) -> None:
    """Print a report, as aligned text or as one JSON object."""
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    out = console(160)  # elsewhere rich would cut the table at 80 columns
    known = facts()
    known.add_row("model", "DeepseekV4ForCausalLM, small, random weights")
    known.add_row("text", report.text)
    known.add_row("device", ", ".join([report.device, *(f"{k} {v}" for k, v in report.versions.items())]))
    for op, modules in report.swapped.items():
        known.add_row("swapped", f"{op} in {len(modules)} modules, first {modules[0]}")
    for backend in dict.fromkeys(report.backends.values()):
        ran = ", ".join(op for op, b in report.backends.items() if b == backend)
        known.add_row("ran", textwrap.fill(f"{backend}: {ran}", 70))
    out.print(known)
    out.print()
    for dtype in dict.fromkeys(phase.dtype for phase in report.phases):
        phases = [phase for phase in report.phases if phase.dtype == dtype]
        out.print(_calls(dtype, phases))
        out.print()
        out.print(_paths(dtype, phases))
        for reason in dict.fromkeys(reason for phase in phases for reason in phase.reasons):
            out.print(f"own: {reason}")
        out.print()
        out.print(_table(dtype, phases))
        out.print()
    out.print(_LEGEND.format(choices=max(phase.choices for phase in report.phases)))
    out.print()
    out.print(
        "decode against prefill, float32: logits {swapped:.1e} apart swapped, {untouched:.1e} untouched".format(
            **report.decode_apart
        )
    )
    for phase in report.phases:
        if phase.first_token_apart is not None:
            out.print(f"generate, {phase.dtype}: token {phase.first_token_apart} is the first to differ")
    if all(phase.first_token_apart is None for phase in report.phases):
        out.print("generate: every token equal")
    for failure in report.failures:
        out.print(f"FAILED {failure}")
    if not report.failures:
        out.print("the swapped model agrees with the untouched one")


_LEGEND = """\
differ: the most that two logits differ, untouched and swapped
bound: twice the untouched model's own error against fp64, plus one rounding
ties, moved: of {choices} choices of experts and entries, those that fell otherwise
between exactly equal scores, and between others; fp64: those that fp64 moves"""


def _calls(dtype: str, phases: list[Phase]) -> Table:
    """Return how often each phase called the operators that some phase in this dtype must call."""
    table = columns(f"calls, {dtype}", *(phase.name for phase in phases))
    for op in dict.fromkeys((*CALLED[getattr(torch, dtype)], *PADDED[getattr(torch, dtype)])):
        table.add_row(op, *(str(phase.calls.get(op, 0)) for phase in phases))
    return table


def _paths(dtype: str, phases: list[Phase]) -> Table:
    """Return how many modules ran which code: an operator, by rows where the mask says what is seen, or their own."""
    table = columns(f"modules, {dtype}", *(phase.name for phase in phases))
    for path in dict.fromkeys(path for phase in phases for path in phase.paths):
        table.add_row(path, *(str(phase.paths.get(path, 0)) for phase in phases))
    return table


def _table(dtype: str, phases: list[Phase]) -> Table:
    table = columns(dtype, "differ", "bound", "ties", "moved", "fp64", "before", "after")
    for phase in phases:
        table.add_row(
            phase.name,
            f"{phase.difference:.1e}",
            f"{phase.bound:.1e}",
            str(phase.choices_tied),
            str(phase.choices_moved),
            str(phase.choices_inexact),
            f"{phase.seconds_untouched:.2f} s",
            f"{phase.seconds_swapped:.2f} s",
        )
    return table
