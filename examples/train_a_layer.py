"""Train an attention layer on lemmata's operators: autograd, a checkpoint and an optimiser need nothing special.

The layer attends to a window of tokens and to compressed entries, each the mean of 16 tokens. It learns to name the token
that came 5 before, of 16 kinds. On a GPU the same program runs the kernels.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import lemmata

KINDS, WIDTH, HEADS, HEAD, RATIO, WINDOW, BACK = 16, 128, 8, 64, 16, 8, 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Layer(nn.Module):
    """Embedding, one attention with a residual, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(KINDS, WIDTH), nn.Embedding(512, WIDTH)
        self.q, self.kv = nn.Linear(WIDTH, HEADS * HEAD), nn.Linear(WIDTH, HEAD)
        self.sink = nn.Parameter(torch.zeros(HEADS))
        self.out, self.head = nn.Linear(HEADS * HEAD, WIDTH), nn.Linear(WIDTH, KINDS)

    def attend(self, x: Tensor) -> Tensor:
        """Return what the tokens of ``x`` [B, S, WIDTH] attend to."""
        batch, length = x.shape[:2]
        q = self.q(x).view(batch, length, HEADS, HEAD).bfloat16()
        rows = self.kv(x).bfloat16()
        entries = rows.unflatten(1, (-1, RATIO)).mean(2)
        out, _ = lemmata.hca(q, rows, entries, self.sink, ratio=RATIO, window=WINDOW)
        return self.out(out.flatten(2).float())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token that came `BACK` before, [B, S, KINDS]."""
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(x + checkpoint(self.attend, x, use_reentrant=False))


torch.manual_seed(0)
layer = Layer().to(DEVICE)
optimiser = torch.optim.AdamW(layer.parameters(), lr=3e-3)
losses = []
for step in range(30):
    tokens = torch.randint(0, KINDS, (8, 64), device=DEVICE)
    loss = cross_entropy(layer(tokens)[:, BACK:].flatten(0, 1), tokens[:, :-BACK].flatten())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
    if step % 10 == 0:
        print(f"step {step}: loss {losses[-1]:.3f}")
print(f"loss from {losses[0]:.3f} to {losses[-1]:.3f}")
