"""The swap of attention in fp64: the same formula, so that nothing but rounding is between it and the untouched model.

In bf16 two runs of one formula differ by chance. Here the operators are their references in fp64, and what the swap
hands them is fp64 too: the mask, the positions, the entries, the cache and the gradients are right or they are not.
"""

import copy
from functools import partial
from unittest import mock

import pytest
import torch

import lemmata

pytest.importorskip("transformers")

from batches import BF16, CALLS, decode, gradient, prefill
from lemmata.integrations import attention
from lemmata.integrations.observe import Choices, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to
from lemmata.reference import csa, hca, swa

EXACT = 1e-11  # of the largest logit or gradient


def in_fp64(op):
    """The operator's reference, with the arguments of the public function."""
    reference = {"swa": swa.swa, "csa": csa.csa, "hca": hca.hca}[op]

    def run(*tensors, offset, window, scale, **ratio):
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
        return reference(*tensors, offset=offset, window=window, scale=scale, **ratio)

    return run


def apart(model, run, wrong=None):
    """How far the swapped model is from the untouched one in fp64, of the largest number."""
    choices, ours = Choices(), apply_to(copy.deepcopy(model), only=["attention"], strict=True)
    operators = {op: in_fp64(op) for op in ("swa", "csa", "hca")} | (wrong or {})
    with Double(), choices.record(model):
        plain = run(model)
    wide = mock.patch.object(attention, "_BF16", torch.float64)
    with wide, mock.patch.multiple(lemmata, **operators), Double(), choices.keep(ours):
        got = run(ours)
    return float((got - plain).abs().max() / plain.abs().max())


MASKED = "nothing said", "later positions", "padded left", "padded right", "padded within", "packed"
ONE_STREAM = {"hc_mult": 1}


@pytest.mark.parametrize(
    ("name", "config"), [*((n, {}) for n in CALLS), *((n, ONE_STREAM) for n in MASKED[::2])], ids=str
)
def test_prefill(name, config):
    assert apart(tiny_model(**config).double(), partial(prefill, **CALLS[name][0])) < EXACT


@pytest.mark.parametrize("name", ["padded left", "padded within"])
def test_decode(name):
    assert apart(tiny_model().double(), partial(decode, **CALLS[name][0])) < EXACT


@pytest.mark.parametrize("name", MASKED)
def test_gradients(name):
    assert apart(tiny_model().double(), partial(gradient, **CALLS[name][0])) < EXACT


WRONG = {
    "a key fewer": ("swa", lambda f, *t, window, **how: f(*t, window=window - 1, **how)),
    "the entries before": ("csa", lambda f, q, w, c, i, s, **how: f(q, w, c, i - 1, s, **how)),
    "entries too late": ("hca", lambda f, *t, ratio, **how: f(*t, ratio=2 * ratio, **how)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_noticed(name):
    op, change = WRONG[name]
    assert apart(tiny_model().double(), prefill, {op: partial(change, in_fp64(op))}) > 1e6 * EXACT


def errors(model, run):
    """The errors of all logits against fp64, untouched and swapped, with the same choices."""
    choices, exact, ours = Choices(), copy.deepcopy(model).double(), apply_to(copy.deepcopy(model))
    with choices.record(model):
        plain = run(model)
    with choices.keep(exact), Double():
        right = run(exact)
    with choices.keep(ours):
        return plain - right, run(ours) - right


def mean_square(errors):
    return torch.cat(list(errors)).square().mean()


def test_one_stream_in_bf16_errs_no_more_than_the_untouched_model():
    """Compare all logits of several models: bf16 leaves so little of one stream that a single logit may lie anywhere."""
    theirs, ours = zip(*(errors(tiny_model(seed, hc_mult=1).to(BF16), prefill) for seed in range(4)), strict=True)
    assert mean_square(ours) <= 1.1**2 * mean_square(theirs)


def through_bf16(op):
    """The operator on what the caller has, rounded to bf16."""
    right = getattr(lemmata, op)

    def run(*tensors, **how):
        rounded = [t.to(BF16) if t.ndim > 2 and t.is_floating_point() else t for t in tensors]
        out, lse = right(*rounded, **how)
        return out.to(tensors[0].dtype), lse

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rounding_another_dtype_to_bf16_would_lose(dtype):
    """Why attention in fp32 and fp16 is the module's own: the operators take bf16, in which its errors would be larger."""
    operators = {op: through_bf16(op) for op in ("swa", "csa", "hca")}
    with mock.patch.object(attention, "_BF16", dtype), mock.patch.multiple(lemmata, **operators):
        theirs, ours = errors(tiny_model().to(dtype), partial(prefill, **CALLS["packed"][0]))
    assert mean_square([ours]) > 2**2 * mean_square([theirs])
