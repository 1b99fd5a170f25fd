"""The main job: a small DeepSeek-V4 from transformers reads real text, untouched and then on lemmata's operators."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .info import BACKENDS
from .integrations.compare import Phase, compare
from .integrations.tiny import tiny_model
from .integrations.transformers import apply_to, swapped, undo

_WIDTH = 160  # off a terminal rich would cut the table at 80 columns
MOVED = 0.01  # the share of choices that near ties may account for; a wrong operator moves more


@dataclass(frozen=True)
class Report:
    """What the main job found. It holds if there are no ``failures``, each of which is one line."""

    text: str
    device: str
    versions: dict[str, str]
    swapped: dict[str, tuple[str, ...]]
    backends: dict[str, str]
    phases: tuple[Phase, ...]
    failures: tuple[str, ...]


def default_text() -> Path:
    """The documentation of Python's syntax, which every CPython carries."""
    spec = find_spec("pydoc_data.topics")
    if spec is None or spec.origin is None:
        raise ValueError("text: expected a file, got none, and this Python carries no documentation")
    return Path(spec.origin)


def passages(text: Path, length: int) -> Tensor:
    """Two passages of the file, its beginning and its middle: their bytes as token ids ``[2, length]``."""
    data = text.read_bytes()
    if len(data) < 2 * length:
        raise ValueError(f"text: expected at least {2 * length} bytes, got {len(data)} in {text}")
    return torch.tensor([list(data[start : start + length]) for start in (0, len(data) // 2)])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small cost more to hand out than to compute, thirtyfold on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _failures(phase: Phase, ops: list[str]) -> Iterator[str]:
    for op in ops:
        if not phase.calls.get(op):
            yield f"{phase.name}: {op} was never called"
    if not phase.difference <= phase.bound:  # NaN fails too
        yield f"{phase.name}: logits differ by {phase.difference:.1e}, more than {phase.bound:.1e}"
    if phase.first_token_apart is None and phase.choices_moved > MOVED * phase.choices:
        yield f"{phase.name}: {phase.choices_moved} of {phase.choices} choices moved, more than near ties explain"


def run(text: Path | None = None, *, length: int = 256, steps: int = 32) -> Report:
    """Compare the model with itself on two passages of a text, on the GPU if there is one.

    Args:
        text: any file of at least two passages; by default `default_text`.
        length: bytes in a passage.
        steps: how many of them are decoded one by one, and how many tokens are generated.

    Raises:
        ValueError: the text is too short, or ``steps`` does not fit in ``length``.
        UnknownVersionError: transformers is absent, or of a version that is not known.
    """
    if not 1 <= steps < length:
        raise ValueError(f"steps: expected a value in [1, {length - 1}], got {steps}")
    text = text or default_text()
    ids = passages(text, length)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _one_thread():
        model = tiny_model().to(device)
        names = swapped(apply_to(model))
        undo(model)
        phases = compare(model, copy.deepcopy(model).double(), ids.to(device), steps)
    devices = {op: device for phase in phases for op, device in phase.devices.items()}
    return Report(
        text=str(text),
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        versions={package: version(package) for package in ("torch", "transformers")},
        swapped=names,
        backends={op: f"{BACKENDS[kind]} on {kind}" for op, kind in devices.items()},
        phases=phases,
        failures=(
            *(() if names else ("nothing was swapped",)),
            *(failure for phase in phases for failure in _failures(phase, list(names))),
        ),
    )


def print_report(report: Report, *, as_json: bool = False) -> None:
    """Print a report, as aligned text or as one JSON object."""
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    console = Console(highlight=False, width=_WIDTH)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("model", "DeepseekV4ForCausalLM, small, random weights, fp32")
    facts.add_row("text", report.text)
    facts.add_row("device", ", ".join([report.device, *(f"{k} {v}" for k, v in report.versions.items())]))
    for op, modules in report.swapped.items():
        facts.add_row("swapped", f"{op} in {len(modules)} modules, {modules[0]} to {modules[-1]}")
    for op, backend in report.backends.items():
        facts.add_row("ran", f"{op}: {backend}")
    console.print(facts)
    console.print()
    columns = ("phase", "positions", "calls", "logits differ", "bound", "choices moved", "untouched", "swapped")
    table = Table(box=None, pad_edge=False, header_style=None)
    for column in columns:
        table.add_column(column, justify="left" if column == "phase" else "right", no_wrap=True)
    for phase in report.phases:
        table.add_row(
            phase.name,
            str(phase.positions),
            ", ".join(f"{op} {count}" for op, count in phase.calls.items()),
            f"{phase.difference:.1e}",
            f"{phase.bound:.1e}",
            f"{phase.choices_moved} of {phase.choices}",
            f"{phase.seconds_untouched:.3f} s",
            f"{phase.seconds_swapped:.3f} s",
        )
    console.print(table)
    console.print("bound: twice the untouched model's own error against fp64, plus one rounding of the largest logit")
    first = report.phases[-1].first_token_apart
    console.print("generate: every token equal" if first is None else f"generate: token {first} is the first to differ")
    for failure in report.failures:
        console.print(f"FAILED {failure}")
    if not report.failures:
        console.print("the swapped model agrees with the untouched one")
