"""Serve two sequences of different lengths: prefill once, then decode step by step, on one function each.

``offset`` is the position of the first query, a number for each sequence. So prefill, a later chunk of it and a decode step
are the same call, and on a CPU give the same bits.
"""

import torch

import lemmata

HEADS, HEAD, RATIO, WINDOW, TOPK = 8, 64, 4, 16, 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)


def bf16(*shape: int) -> torch.Tensor:
    """Stand for what a model's projections give."""
    return torch.randn(*shape, device=DEVICE).bfloat16()


LENGTH, BATCH = 64, 2
q, rows = bf16(BATCH, LENGTH, HEADS, HEAD), bf16(BATCH, LENGTH, HEAD)
entries, keys = bf16(BATCH, LENGTH // RATIO, HEAD), bf16(BATCH, LENGTH // RATIO, 32)
index_q, weights = bf16(BATCH, LENGTH, HEADS, 32), torch.rand(BATCH, LENGTH, HEADS, device=DEVICE)
sink = torch.zeros(HEADS, device=DEVICE)


def attend(begin: torch.Tensor, count: int) -> torch.Tensor:
    """Return the attention of ``count`` queries of each sequence, from position ``begin`` [BATCH] on."""
    places = begin[:, None] + torch.arange(count, device=DEVICE)  # [BATCH, count]
    past = begin[:, None] - (WINDOW - 1) + torch.arange(WINDOW - 1 + count, device=DEVICE)
    each = torch.arange(BATCH, device=DEVICE)[:, None]
    window = rows[each, past.clamp(0, LENGTH - 1)]  # a row before position 0 is in no window
    offset = begin.int()
    chosen = lemmata.indexer_topk(
        index_q[each, places], keys, weights[each, places], topk=TOPK, ratio=RATIO, offset=offset
    )
    out, _ = lemmata.csa(q[each, places], window, entries, chosen, sink, window=WINDOW, offset=offset)
    return out


whole = attend(torch.tensor([0, 0], device=DEVICE), LENGTH)
prompts = torch.tensor([40, 23], device=DEVICE)  # the sequences stand at different positions
same = True
for step in range(8):
    at = prompts + step
    decoded = attend(at, 1)[:, 0]
    prefilled = torch.stack([whole[b, at[b]] for b in range(BATCH)])
    same &= torch.equal(decoded, prefilled) if DEVICE == "cpu" else torch.allclose(decoded, prefilled, atol=1e-2)
print("8 decode steps of 2 sequences", "equal" if same else "DIFFER from", "what prefill gave")
