"""A record outlives a change of a kernel's source only if every kernel has the same code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import pytest

from lemmata.bench import same_code
from lemmata.bench.same_code import Codes, compare, emitted, emitted_by, keep
from lemmata.record import kernel_digest

OLD, NEW = (hashlib.sha256(text).hexdigest() for text in (b"old", b"new"))
CODE = {"csa_fwd H=64": {"a"}, "csa_fwd H=128": {"b"}}
TREES = Path("old"), Path("new")


def trees(monkeypatch: pytest.MonkeyPatch, *new: Codes) -> None:
    """Let the old tree emit ``CODE``, and the new one other codes, one after the other."""
    codes = iter(new)

    def emit(tree: Path, op: str, names: Collection[str] = ()) -> tuple[str, Codes]:
        found = CODE if tree == TREES[0] else next(codes, new[-1])
        return (OLD if tree == TREES[0] else NEW), {n: set(c) for n, c in found.items() if not names or n in names}

    monkeypatch.setattr(same_code, "emitted_by", emit)


def test_the_same_code_keeps_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "layer" / "gpu.json"
    file.parent.mkdir()
    figures = [{"op": "csa", "kernels": {"csa": OLD}}]
    file.write_text(json.dumps({"kernels": {"csa": OLD, "topk": "another"}, "figures": figures}))
    trees(monkeypatch, CODE)
    keep(*compare(*TREES, "csa"), results=tmp_path)
    found = json.loads(file.read_text())
    assert found["kernels"] == {"csa": NEW, "topk": "another"}
    assert found["figures"][0]["kernels"] == {"csa": NEW}


@pytest.mark.parametrize(
    ("new", "named"),
    [
        (CODE | {"csa_fwd H=128": {"c"}}, "csa_fwd H=128"),
        (CODE | {"csa_fwd H=16": {"d"}}, "csa_fwd H=16"),
        ({"csa_fwd H=64": {"a"}}, "csa_fwd H=128"),
    ],
)
def test_another_code_is_named(monkeypatch: pytest.MonkeyPatch, new: Codes, named: str) -> None:
    trees(monkeypatch, new)
    with pytest.raises(ValueError, match=f"expected the same CUDA of every kernel, got another of {named}$"):
        compare(*TREES, "csa")


def test_a_kernel_that_has_one_of_several_codes_is_emitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    other = CODE | {"csa_fwd H=64": {"x"}}
    trees(monkeypatch, other, other, CODE)
    assert compare(*TREES, "csa") == (OLD, NEW)


def test_the_code_of_an_operator_is_that_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = list(same_code.proofs("sinkhorn"))[:2]
    monkeypatch.setattr(same_code, "proofs", lambda op: suite)
    found = emitted("sinkhorn")
    assert [*found] == [p.name for p in suite]
    assert found[suite[0].name] != found[suite[1].name]
    here = same_code.RESULTS.parents[1]
    assert emitted_by(here, "sinkhorn", [suite[1].name]) == (
        kernel_digest("sinkhorn"),
        {suite[1].name: found[suite[1].name]},
    )
