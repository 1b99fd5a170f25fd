"""Padded and packed batches for transformers' DeepSeek-V4, and a swapped model compared with the untouched one."""

import copy

import torch
from transformers import DynamicCache

from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.transformers import apply_to

BF16, LENGTH = torch.bfloat16, 44
IDS = torch.randint(1, 256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
KINDS = "swa", "csa", "hca"
BY_POSITION = {"swa": 1, "csa": 2, "hca": 1}
BY_ROWS = {"csa": 4}


def masked(*hidden):
    mask = torch.ones_like(IDS)
    for row, columns in hidden:
        mask[row, columns] = 0
    return mask


def counted(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def packed(*starts):
    positions = torch.arange(LENGTH).repeat(2, 1)
    for row, start in starts:
        positions[row, start:] = torch.arange(LENGTH - start)
    return positions


LEFT, RIGHT, HOLES = masked((0, slice(0, 5))), masked((1, slice(-9, None))), masked((0, slice(20, 23)))
CALLS = {
    "nothing said": ({}, BY_POSITION),
    "a mask of ones": ({"attention_mask": masked()}, BY_POSITION),
    "positions": ({"position_ids": torch.arange(LENGTH)[None]}, BY_POSITION),
    "later positions": ({"position_ids": 9 + torch.arange(LENGTH)[None]}, BY_POSITION),
    "padded left": ({"attention_mask": LEFT, "position_ids": counted(LEFT)}, BY_POSITION),
    "padded left, positions not counted": ({"attention_mask": LEFT}, BY_ROWS),
    "padded right": ({"attention_mask": RIGHT}, BY_ROWS),
    "padded right, positions counted": ({"attention_mask": RIGHT, "position_ids": counted(RIGHT)}, BY_ROWS),
    "padded within": ({"attention_mask": HOLES}, BY_ROWS),
    "packed": ({"position_ids": packed((0, 13), (0, 30), (1, 30))}, BY_ROWS),
    "packed, one row of positions": ({"position_ids": packed((0, 21))[:1]}, BY_ROWS),
    "a sequence of padding alone": ({"attention_mask": masked((1, slice(None)))}, BY_ROWS),
}


def on(model, how):
    """The tokens, and what else a call is given, where the model is."""
    device = next(model.parameters()).device
    return IDS.to(device), {name: tensor.to(device) for name, tensor in how.items()}


@torch.no_grad()
def prefill(model, **how):
    ids, how = on(model, how)
    return model(ids, use_cache=False, **how).logits


@torch.no_grad()
def decode(model, prompt=38, **how):
    """Logits of a prompt and of each token after it, as ``generate`` runs a model on a padded batch."""
    (ids, how), cache, logits = on(model, how), DynamicCache(config=model.config), []
    for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, LENGTH))]:
        given = {"attention_mask": how["attention_mask"][:, :end]} if "attention_mask" in how else {}
        if "position_ids" in how:
            given["position_ids"] = how["position_ids"][:, start:end]
        logits.append(model(ids[:, start:end], past_key_values=cache, **given).logits)
    return torch.cat(logits, 1)


def compared(model, run, ours=None):
    """The largest difference that the swap makes with the same choices, what it may be, and the operators called.

    It may be twice the untouched model's own error against fp64, and one rounding of the largest logit.
    """
    choices, calls = Choices(), Dispatches()
    with choices.record(model):
        plain = run(model)
    exact, ours = copy.deepcopy(model).double(), ours or apply_to(copy.deepcopy(model), strict=model.dtype == BF16)
    with choices.keep(exact), Double():
        right = run(exact)
    with choices.keep(ours), calls:
        got = run(ours)
    limit = 2 * (plain - right).abs().max() + torch.finfo(model.dtype).eps * plain.abs().max()
    return (got - plain).abs().max(), limit, calls.calls


def of_attention(calls):
    return {op: n for op, n in calls.items() if op in KINDS}


def gradient(model, **how):
    ids, how = on(model, how)
    model.zero_grad()
    model(ids, labels=ids, use_cache=False, **how).loss.backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
