"""Train a small DeepSeek-V4 on real text by lemmata's operators, and write its losses for plot_a_loss.py to draw.

    python examples/train.py --steps 300 --losses loss.json

The text is Python's own documentation, byte by byte. Needs: pip install 'lemmata[hf]'. Runs on a GPU if there is one.
"""

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics

import torch

from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths

BATCH, LENGTH, DEVICE = 4, 128, "cuda" if torch.cuda.is_available() else "cpu"


def entropies(text: torch.Tensor) -> list[float]:
    """Return the entropy of a byte, and of a byte after a known one, in nats: what a model reaches that learns no more."""
    pairs = torch.bincount(text[:-1] * 256 + text[1:], minlength=2**16).double() / (len(text) - 1)
    first, both = (-torch.special.xlogy(p, p).sum().item() for p in (pairs.view(256, 256).sum(1), pairs))
    return [first, both - first]


def train(text: torch.Tensor, steps: int, rate: float, *, untouched: bool) -> list[float]:
    """Return the loss of each step."""
    torch.manual_seed(0)
    model = tiny_model().to(DEVICE).train()
    if not untouched:
        apply_to(model, strict=True)  # strict: no module may run its own code
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=rate), []
    for step in range(steps):
        tokens = text[torch.randint(len(text) - LENGTH, (BATCH, 1)) + torch.arange(LENGTH)].to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):  # the operators of attention take bf16
            loss = model(tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.3f}", flush=True)
    print("by", ", ".join(sorted({str(path.last) for path in paths(model).values()})) or "transformers alone")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--untouched", action="store_true")
    parser.add_argument("--losses", type=Path, default="loss.json", help="where to write the losses, as JSON")
    asked = parser.parse_args()
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    levels, losses = entropies(text), train(text, asked.steps, asked.rate, untouched=asked.untouched)
    asked.losses.write_text(json.dumps({"losses": [round(x, 4) for x in losses], "entropies": levels}) + "\n")
    last = torch.tensor(losses[-10:]).mean()
    print(f"loss from {losses[0]:.3f} to {last:.3f}; a byte alone has {levels[0]:.3f} nats")
