"""The loss of a small model as it trains: ``docs/losses*.json``, which ``examples/train.py --losses FILE`` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lemmata.bench import svg

HERE = Path(__file__).parent
LEFT, TOP, WIDTH, HEIGHT, OVER = 44, 44, 460, 250, 10
HIGHEST = 7.0  # nats
RUNS = {"losses-untouched.json": ("untouched", "curve untouched"), "losses.json": ("on lemmata", "curve")}


def loss() -> str:
    """Return the loss on lemmata and untouched, each a mean of ten steps, above what a byte alone allows."""
    return svg.picture(520, 336, "The loss of a small DeepSeek-V4 on real text, on lemmata and untouched", _loss())


def _loss() -> Iterator[str]:
    runs = {name: json.loads((HERE / name).read_text(encoding="utf-8")) for name in RUNS}
    alone, after = runs["losses.json"]["entropies"]
    steps = max(len(run["losses"]) for run in runs.values())
    yield from _axes(steps)
    for level, words in ((alone, "a byte alone"), (after, "a byte after the one before it")):
        y = _down(level)
        yield svg.line(LEFT, y, LEFT + WIDTH, y, "bound thin")
        yield svg.text(LEFT + WIDTH, y - 5, f"{words}: {level:.2f}", "end small over")
    for number, (name, (words, kind)) in enumerate(RUNS.items()):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _points(runs[name]["losses"], steps))
        yield f'<polyline class="{kind}" points="{points}"/>'
        x = LEFT + 130 * number
        yield f'<polyline class="{kind}" points="{x},16 {x + 24},16"/>{svg.text(x + 32, 20, words)}'


def _axes(steps: int) -> Iterator[str]:
    for nats in range(int(HIGHEST) + 1):
        yield svg.line(LEFT, _down(nats), LEFT + WIDTH, _down(nats))
        yield svg.text(LEFT - 8, _down(nats) + 4, str(nats), "end soft small")
    for step in range(0, steps + 1, 100):
        yield svg.text(LEFT + WIDTH * step / steps, TOP + HEIGHT + 18, str(step), "mid soft small")
    yield svg.text(
        LEFT + WIDTH, TOP + HEIGHT + 36, "steps; the loss in nats a byte, the mean of ten steps", "end soft small"
    )


def _points(losses: Sequence[float], steps: int) -> Iterator[tuple[float, float]]:
    for i in range(len(losses)):
        recent = losses[max(0, i + 1 - OVER) : i + 1]
        yield LEFT + WIDTH * i / steps, _down(sum(recent) / len(recent))


def _down(nats: float) -> float:
    return TOP + HEIGHT * (1 - nats / HIGHEST)
