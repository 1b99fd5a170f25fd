"""The swap of AutoModel's attention in fp64: the same formula, so that nothing but rounding is between the two models.

The operators are their references in fp64 here, and what the swap hands them is fp64 too: rows, entries, indices, offsets
and gradients are right or they are not.
"""

import copy
from functools import partial
from unittest import mock

import pytest
import torch

import lemmata

pytest.importorskip("nemo_automodel", reason="needs NeMo AutoModel: make test-automodel")

from automodel_models import CALLS, IDS, Picks, run, tiny
from lemmata.integrations import automodel_attention
from lemmata.integrations.automodel import apply_to, paths
from lemmata.integrations.observe import Double
from lemmata.reference import csa, hca, swa

EXACT = 1e-11  # of the largest number of the same tensor


def in_fp64(op):
    """The operator's reference, with the arguments of the public function."""
    reference = {"swa": swa.swa, "csa": csa.csa, "hca": hca.hca}[op]

    def call(*tensors, offset, window, scale, **ratio):
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
        return reference(*tensors, offset=offset, window=window, scale=scale, **ratio)

    return call


def apart(model, ids=IDS, wrong=None, **how):
    """How far logits and gradients of the swapped model are from the untouched one's, of the largest of their tensor."""
    picks, ours = Picks(), apply_to(copy.deepcopy(model), only=["attention"], strict=True)
    operators = {op: in_fp64(op) for op in ("swa", "csa", "hca")} | (wrong or {})
    with Double(), picks.record(model):
        plain = run(model, ids, **how)
    wide = mock.patch.object(automodel_attention, "_BF16", torch.float64)
    with wide, mock.patch.multiple(lemmata, **operators), Double(), picks.keep(ours):
        got = run(ours, ids, **how)
    assert plain.keys() == got.keys()
    assert {path.reason for path in paths(ours).values()} == {None}
    return max(float((got[n] - plain[n]).abs().max() / (plain[n].abs().max() + 1e-12)) for n in plain)


@pytest.mark.parametrize("name", CALLS)
def test_logits_and_gradients(name):
    assert apart(tiny(torch.float64), **CALLS[name][0]) < EXACT


SHAPES = {
    "fewer tokens than an entry has": (3, {}),
    "no whole entry of an hca layer": (30, {"compress_ratios": [0, 4, 128, 4]}),
    "a window larger than the row": (20, {"sliding_window": 64}),
    "a window of one": (40, {"sliding_window": 1}),
    "a layer that predicts the next token but one": (40, {"num_nextn_predict_layers": 1}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    tokens, config = SHAPES[name]
    assert apart(tiny(torch.float64, **config), IDS[:, :tokens]) < EXACT


WRONG = {
    "a key fewer": ("swa", {}, lambda f, *t, window, **how: f(*t, window=window - 1, **how)),
    "the entries before": ("csa", {}, lambda f, q, w, c, i, s, **how: f(q, w, c, i - 1, s, **how)),
    "entries too late": ("hca", {}, lambda f, *t, ratio, **how: f(*t, ratio=2 * ratio, **how)),
    "rows of another document": (
        "csa",
        CALLS["packed"][0],
        lambda f, q, w, c, i, s, **how: f(q, w, c, i + 1, s, **how),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_noticed(name):
    """Planted errors."""
    op, how, change = WRONG[name]
    assert apart(tiny(torch.float64), wrong={op: partial(change, in_fp64(op))}, **how) > 1e6 * EXACT
