"""Every kernel under tests/verdicts has the verdict that its file states, and a file that states another one fails."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lemmata.proofs import verify
from verdicts import STRICT, Proved, Refuted, Unproved, Unsupported, Verdict, opened

FOLDER = Path(__file__).parent / "verdicts"
FILES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.py"))


def difference(file: ModuleType, verdict: Verdict) -> str:
    """Say how the engine's verdict on a file's kernel differs from this one; nothing where it does not."""
    options: dict[str, Any] = {"pass_configs": STRICT, **getattr(file, "OPTIONS", {})}
    reference = getattr(file, "reference", None) if {"L2", "range"} & set(verdict.layers) else None
    report = verify(file.kernel, file.CONTRACT, reference=reference, layers=verdict.layers, **options)
    return verdict.differs(report)


LONG = {"async/compilers_pipeline_of_three_right"}
"""A quarter of a minute each; test_order.py has a ring of three stages, and pipelines of two."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.exhaustive] * (n in LONG)) for n in FILES])
def test_verdict(name: str) -> None:
    file = opened(name)
    if found := difference(file, file.VERDICT):
        pytest.fail(f"{file.__doc__}\n{found}", pytrace=False)


WRONG = [
    ("races/lane_of_the_neighbour", Proved("L1"), "not proved"),
    ("races/lane_of_the_neighbour", Refuted("L1", race="read of history", when="tx == tx'"), "does not hold of"),
    ("races/lane_of_the_neighbour", Refuted("L1", race="read of history", when="tx == no_such_name"), "does not hold"),
    ("races/lane_of_the_neighbour", Refuted("L1", race="read of B"), "no race says"),
    ("races/lane_of_the_neighbour", Refuted("L1", race=("read of history", "read of B")), "no race says"),
    ("races/lane_of_the_neighbour", Refuted("L1", coverage="B"), "expected to be refuted"),
    ("races/lane_of_the_neighbour", Refuted("L1", race="history", coverage="B"), "expected to be refuted"),
    ("races/lane_of_the_neighbour", Unproved("L1", race="read of history"), "expected to be not proved"),
    ("races/lane_of_the_neighbour", Refuted("L0", race="read of history"), "expected to be refuted"),
    ("races/lane_right", Refuted("L1", race="read of history"), "got\nnothing"),
    ("races/lane_right", Proved("L1", unmodelled="tl.pdl_sync"), "is not among what is not modelled"),
    ("races/lane_right", Proved("L1", says="trusted"), "is not said"),
    ("races/part_of_a_block", Proved("L1"), "not proved"),
    ("races/part_of_a_block", Unsupported("L1", "tma_store"), "no unsupported says"),
    ("equality/mask_of_fewer", Refuted("L2", equivalence="out"), "expected to be refuted"),
    ("equality/mask_of_fewer", Proved("L2"), "not proved"),
]


@pytest.mark.parametrize(("name", "verdict", "words"), WRONG)
def test_a_file_that_states_another_verdict_fails(
    name: str, verdict: Verdict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened(name), "VERDICT", verdict)
    with pytest.raises(pytest.fail.Exception, match=words):
        test_verdict(name)


def stated(name: str) -> tuple[str, str]:
    """The first word of a file and the kind of its verdict, which is its last statement."""
    module = ast.parse((FOLDER / f"{name}.py").read_text())
    match module.body[-1]:
        case ast.Assign([ast.Name("VERDICT")], ast.Call(ast.Name(kind))):
            return (ast.get_docstring(module) or "").split(":")[0], kind
    raise AssertionError(f"{name}: the last statement is no verdict")


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_is_three_times(name: str) -> None:
    """By its name, its first word and its verdict; and beside a wrong kernel stands one that is right."""
    word, kind = stated(name)
    assert word == {"Proved": "Right", "Unsupported": "Refused", "Unknown": "Open"}.get(kind, "Wrong")
    assert name.endswith("_right") == (kind == "Proved")
    words = name.split("_")
    assert any("_".join([*words[:n], "right"]) in FILES for n in range(1, len(words) + 1)), "no right twin"
