"""The errors against fp64 that the documentation shows are those of the kernels, and within the bound that tests allow."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from torch import Tensor

from errors import CASES, ERRORS, Case, measured
from lemmata.kernels import sinkhorn

KEPT = {each["case"]: each for each in json.loads(ERRORS.read_text())}
LONG = {"window", "norm_eps"}  # over attention and projections at true widths the interpreter takes half a minute
SHOWN = [
    pytest.param(case, id=case.name, marks=[pytest.mark.exhaustive] if LONG & case.configuration.keys() else [])
    for case in CASES
]


def alike(found: float, kept: float) -> bool:
    """Whether two errors are of one size: sums in fp32 are in another order on another CPU."""
    return kept / 2 <= found <= 2 * kept


@pytest.mark.parametrize("case", SHOWN)
def test_what_is_shown_is_what_is_measured(case: Case) -> None:
    found, kept = measured(case), KEPT[case.name]
    assert alike(found["kernel"], kept["kernel"])
    assert alike(found["torch"], kept["torch"])


def test_every_case_is_shown_and_within_the_bound() -> None:
    assert list(KEPT) == [case.name for case in CASES]
    assert all(0 < each["kernel"] <= 2 * each["torch"] for each in KEPT.values())


def test_a_kernel_that_is_wrong_is_far_off() -> None:
    def too_few_iterations(logits: Tensor, iterations: int, eps: float) -> Tensor:
        return sinkhorn.forward(logits, iterations // 10, eps)  # type: ignore[no-any-return]

    found = measured(replace(CASES[0], launch=too_few_iterations))
    assert found["kernel"] > 100 * found["torch"]
