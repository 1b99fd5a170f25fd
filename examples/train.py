"""Train a small DeepSeek-V4 on real text, by lemmata's operators, and plot how its loss falls.

    python examples/train.py --steps 300 --plot loss.svg

The text is Python's own documentation, byte by byte, which comes with Python. A model that learns how often each byte comes
and no more stays above the upper line of the plot; one that learns which byte follows which, above the lower.
Needs: pip install 'lemmata[hf]'. Runs on a GPU if there is one.
"""

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor

from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths

BATCH, LENGTH, OVER = 4, 128, 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def entropies(text: Tensor) -> list[float]:
    """Return the entropy of a byte, and of a byte after a known one, in nats."""
    pairs = torch.bincount(text[:-1] * 256 + text[1:], minlength=2**16).double() / (len(text) - 1)
    first, both = (-torch.special.xlogy(p, p).sum().item() for p in (pairs.view(256, 256).sum(1), pairs))
    return [first, both - first]


def train(text: Tensor, steps: int, *, untouched: bool, rate: float) -> list[float]:
    """Return the loss of each step."""
    torch.manual_seed(0)
    model = tiny_model().to(DEVICE).train()
    if not untouched:
        apply_to(model, strict=True)  # strict: no module may run its own code
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=rate), []
    for step in range(steps):
        begin = torch.randint(len(text) - LENGTH, (BATCH, 1))
        tokens = text[begin + torch.arange(LENGTH)].to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):  # the operators of attention take bf16
            loss = model(tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}", flush=True)
    print("by", ", ".join(sorted({str(path.last) for path in paths(model).values()})) or "transformers alone")
    return losses


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
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--untouched", action="store_true", help="without lemmata, to compare")
    parser.add_argument("--plot", type=Path, help="where to draw the loss, as SVG")
    parser.add_argument("--losses", type=Path, help="where to write the losses, as JSON")
    asked = parser.parse_args()
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    levels, losses = entropies(text), train(text, asked.steps, untouched=asked.untouched, rate=asked.rate)
    print(f"loss from {losses[0]:.3f} to {smooth(losses)[-1]:.3f}; a byte alone has {levels[0]:.3f} nats")
    if asked.plot:
        asked.plot.write_text(plot(losses, levels))
    if asked.losses:
        asked.losses.write_text(json.dumps({"losses": [round(x, 4) for x in losses], "entropies": levels}) + "\n")
