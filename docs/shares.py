"""What hyper-connections take of a layer: ``bench/results/layer``, which ``python -m lemmata.bench.layer`` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lemmata.bench import svg

RECORDS = Path(__file__).parents[1] / "bench" / "results" / "layer"
WIDTH, MARGIN, LEFT, RIGHT = 520, 12, 110, 400  # bars begin at LEFT; the longest ends at RIGHT
BAR, STEP, HEAD = 12, 24, 30  # heights: of a bar, from one to the next, of a card's name


def picture() -> str:
    """Return the shares of a step, forward and backward, on each card, by whose hyper-connections the layer has."""
    cards = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDS.glob("*.json"))]
    parts, y = [svg.text(MARGIN, 18, "share of a step, forward and backward; and the step", "soft small")], 30.0
    for card in cards:
        parts += _card(card, y)
        y += HEAD + STEP * len(card["rows"])
    return svg.picture(WIDTH, round(y), "What hyper-connections take of a layer of DeepSeek-V4 Flash", parts)


def _card(card: Mapping[str, Any], top: float) -> Iterator[str]:
    yield svg.text(MARGIN, top + 14, f"{card['device']}, {card['tokens']} tokens", "bold")
    longest = max(row["step_share"] for row in card["rows"])
    for number, row in enumerate(card["rows"]):
        y, share = top + HEAD + STEP * number, row["step_share"]
        words = f"{share:.1%}, {row['step_ms']:.1f} ms"
        kind = "ours" if row["connections"] == "fused" else "rival"
        yield svg.text(LEFT - 6, y + 10, row["connections"], "end soft small")
        yield svg.bar(LEFT, y, (RIGHT - LEFT) * share / longest, BAR, kind, f"{row['connections']}: {words}")
        yield svg.text(WIDTH - MARGIN, y + 10, words, "end small")
