"""The committed record says what was run, and its figures are printed as they are."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lemmata.bench.report import markdown
from lemmata.operators import OPERATORS
from lemmata.record import Record, _named, records
from specs import SPECS


def figure(contender: str, burst_us: float, noise: float, sustained_us: float = 1.0) -> dict[str, Any]:
    times = {"burst_us": burst_us, "sustained_us": sustained_us, "bound_us": 1.0, "bound": "memory"}
    return {"op": "x", "shape": "s", "contender": contender, "noise": noise, **times}


def test_a_slower_kernel_is_marked() -> None:
    assert "| **0.50 x, slower** | 1.0 x |" in markdown([figure("lemmata", 2.0, 0.01), figure("peer", 1.0, 0.01)])


def test_a_slower_kernel_is_never_said_to_take_the_same_time() -> None:
    for ours, words in ((1.002, "0.998"), (1.0001, "0.999"), (1.006, "0.99")):
        assert f"| **{words} x, slower** |" in markdown([figure("lemmata", ours, 0.01), figure("peer", 1.0, 0.01)])


def test_the_cases_of_a_function_stand_together() -> None:
    measured = [figure("lemmata", 1.0, 0.01) | {"op": op, "shape": shape} for op, shape in ("xa", "yb", "xc")]
    assert [row.split(" | ")[:2] for row in markdown(measured).splitlines()[2:]] == [
        ["| x", "a"],
        ["| x", "c"],
        ["| y", "b"],
    ]


def test_the_sustained_ratio_stands_beside_that_of_bursts() -> None:
    rows = markdown([figure("lemmata", 1.0, 0.01, 4.0), figure("peer", 3.0, 0.01, 3.0)])
    assert rows.endswith("| 3.0 x | **0.75 x, slower** |")


def test_a_noisy_figure_says_so() -> None:
    rows = markdown([figure("lemmata", 2.0, 0.151), figure("peer", 1.0, 0.05)])
    assert "| 2.00 (spread 15%) |" in rows
    assert "| peer | 1.00 |" in rows


def test_a_figure_of_an_earlier_kernel_says_so() -> None:
    ours = figure("lemmata", 2.0, 0.01)
    assert "| 2.00, earlier kernel |" in markdown([ours], lambda f: f is ours)
    assert "earlier" not in markdown([ours])


LACKS = {"NVIDIA H200": {"hca", "swa"}}
"""Operators of which more tests are to be run on that card with their present kernels."""


def test_the_record_holds_the_gpu_tests_of_every_operator_it_knows() -> None:
    assert {record.device["name"] for record in records()} > set(LACKS)
    for record in records():
        holds_its_tests(record)
        assert not failures_of_present_kernels(record)


def failures_of_present_kernels(record: Record) -> list[str]:
    """Return the tests that failed of operators whose kernels are the present ones; of earlier kernels, pages tell them."""
    stale = set(filter(record.stale, OPERATORS))
    return [name for name, verdict in record.tests.items() if verdict == "failed" and stale.isdisjoint(_named(name))]


def test_a_failure_of_a_present_kernel_is_noticed() -> None:
    record = next(record for record in records() if not record.stale("csa"))
    name = "tests/test_ops.py::test_values[cuda-csa]"
    assert failures_of_present_kernels(replace(record, tests={name: "failed"})) == [name]
    earlier = replace(record, tests={name: "failed"}, kernels={**record.kernels, "csa": "another"})
    assert not failures_of_present_kernels(earlier)


def holds_its_tests(record: Record) -> None:
    """Each operator that a record knows was tested on its GPU."""
    assert len(record.kernels) >= 3
    known = record.kernels.keys() - LACKS.get(record.device["name"], set())
    for spec in (spec for spec in SPECS if spec.operator in known):
        seen = {name for name in record.tests if re.search(rf"[-\[]{spec.name}\]", name)}
        assert sum("test_gpu.py" in name for name in seen) >= 5
        assert sum("cuda" in name for name in seen) >= (25 if spec.differentiable else 15)
