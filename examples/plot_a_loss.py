"""Draw the losses that train.py wrote, as SVG.

    python examples/plot_a_loss.py loss.json loss.svg

A model that learns how often each byte comes and no more stays above the upper line; one that learns which byte follows
which, above the lower.
"""

import json
import sys
from pathlib import Path

OVER = 10  # steps of the mean that is drawn


def smooth(losses: list[float]) -> list[float]:
    """Return the mean of each loss and the few before it."""
    recent = [losses[max(0, i + 1 - OVER) : i + 1] for i in range(len(losses))]
    return [sum(part) / len(part) for part in recent]


def plot(losses: list[float], levels: list[float]) -> str:
    """Return the losses, smoothed, above two level lines, as SVG."""
    down = [300 - 280 * loss / max(losses) for loss in smooth(losses)]
    curve = " ".join(f"{600 * i / len(down):.1f},{y:.1f}" for i, y in enumerate(down))
    lines = (f'<path d="M0 {300 - 280 * level / max(losses):.1f}h600" stroke="orange"/>' for level in levels)
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 300" fill="none" stroke="blue">'
    return f'{head}<rect width="600" height="300" fill="white"/>{"".join(lines)}<polyline points="{curve}"/></svg>\n'


if __name__ == "__main__":
    read, drawn = map(Path, sys.argv[1:])
    run = json.loads(read.read_text())
    drawn.write_text(plot(run["losses"], run["entropies"]))
    print(f"drew {len(run['losses'])} losses in {drawn.name}")
