"""The time that a contract adds to a call: what every eager call pays before its kernel is launched.

``pytest bench/contract.py`` times it on any machine. The aim is 2 us; no test asserts a time, since machines differ.
"""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lemmata.reference.sinkhorn import FORWARD


def test_a_check_of_sinkhorn(benchmark: BenchmarkFixture) -> None:
    """Check the arguments of one call of sinkhorn."""
    logits = torch.zeros(4096, 4, 4)
    benchmark(FORWARD.check, logits, iterations=20, eps=1e-6)
