"""What steps of the compressor need for the absence of races is claimed, and no less would do; planted errors are refuted."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lemmata.kernels import compressor_step as kernels
from lemmata.kernels.compressor_step import Config
from lemmata.proofs import compressor_step
from lemmata.proofs.suite import Proof
from lemmata.reference.contract import Elements

CFG = Config(2, 64, pairs=4, capacity=8)


def proof() -> Proof:
    """Return the proof of a small kernel that makes entries and keeps rows."""
    return compressor_step._proof(kernels.compress_step, CFG, ("L1",))


def undistinguished(name: str) -> Proof:
    """Return the same without the hypothesis that the elements of an input are distinct."""
    contract = proof().contract
    inputs = tuple(replace(spec, elements=Elements()) if spec.name == name else spec for spec in contract.inputs)
    return replace(proof(), contract=replace(contract, inputs=inputs))


def failing(of: Proof) -> set[str]:
    """Return the kinds of the conditions of the layer that are refuted."""
    (layer,) = of.run(fresh=True, layers=["L1"]).layers
    return {failure.kind for failure in layer.failures}


def test_no_block_writes_what_another_reads_or_writes() -> None:
    assert failing(proof()) == set()


@pytest.mark.parametrize(("name", "kinds"), [("slots", {"uniqueness", "race"}), ("table", {"uniqueness"})])
def test_two_sequences_of_one_slot_and_two_entries_of_one_page_meet(name: str, kinds: set[str]) -> None:
    assert failing(undistinguished(name)) == kinds


def test_a_call_of_one_token_more_overwrites_what_it_reads() -> None:
    """The planted error, that the capacity is taken to be one larger: the bound is exact."""
    assert proof().contract.relations == ("S+2*ratio <= capacity+1",)
    assert failing(replace(proof(), contract=replace(proof().contract, relations=("S+2*ratio <= capacity+2",)))) == {
        "race"
    }


# What is written is the reference's

FEW, MANY = Config(2, 128, pairs=4, capacity=12), Config(32, 128, overlap=False, pairs=4, capacity=48)
KERNELS = {factory.__name__: (factory, cfg) for of in (FEW, MANY) for factory, cfg in kernels.step_kernels(of)}
KERNELS["compress_keep"] = kernels.compress_keep, replace(FEW, keeps=False)


def failed(name: str, module: Any = kernels) -> list[str]:
    """Return what is not shown of a kernel of a module, of layers L2 and range."""
    of = compressor_step._proof(*KERNELS[name])
    of = replace(of, kernel=getattr(module, name)(KERNELS[name][1]))
    return [f.statement.splitlines()[0] for f in of.run(fresh=True, layers=["L2", "range"]).failures]


@pytest.mark.parametrize("name", KERNELS)
def test_entries_and_rows_are_the_reference_s(name: str) -> None:
    assert failed(name) == []


class Planted(NamedTuple):
    """An error in the kernels: what stands in their text, what is put there, and with what the refuted statement begins."""

    right: str
    wrong: str
    refuted: str


CANDIDATE, ENTRY, ROW = "what is stored at", "cache[", "state["
OF_STEP = {
    "the halves of a row swapped": Planted("* (1 - before)\n", "* before\n", CANDIDATE),
    "a place modulo another capacity": Planted("back + r) % cfg.capacity", "back + r) % (cfg.capacity - 1)", CANDIDATE),
    "no bias of what a state keeps": Planted("place, 1, c] + ape[r, c], -T", "place, 1, c], -T", CANDIDATE),
    "the bias of the next token": Planted("row, c] + ape[r, c],", "row, c] + ape[(r + 1) % cfg.ratio, c],", CANDIDATE),
    "values for logits": Planted("place, 1, c] + ape[r, c], -T", "place, 0, c] + ape[r, c], -T", CANDIDATE),
    "a row of the call for the state's": Planted(
        "row >= 0,\n            x.kv", "row >= -1,\n            x.kv", CANDIDATE
    ),
    "a weight of a block before the first": Planted("ape[r, c], -T.infinity(F32)),", "ape[r, c], 0),", CANDIDATE),
    "a block before entry 0": Planted("number >= 1, position)", "number >= 0, position)", CANDIDATE),
    "none before entry 1": Planted("number >= 1, position)", "number >= 2, position)", CANDIDATE),
    "the position of another token": Planted("number >= 1, position)", "number >= 1, position + 1)", CANDIDATE),
    "weights that add up to 2": Planted("rounded[t, j] = acc[t, j]", "rounded[t, j] = 2 * acc[t, j]", ENTRY),
    "another row of the page": Planted("i=at.i - to.column[0] * x.cache.shape[1])", "i=at.i % 2)", ENTRY),
    "another page": Planted("table[b, to.column[0]]", "table[b, 0]", ENTRY),
    "an entry less": Planted("* cfg.ratio <= to.start[0]", "* cfg.ratio < to.start[0]", ENTRY),
    "a row less is kept": Planted("r < S:", "r < S - 1:", ROW),
    "a row in another place": Planted("q, (to.start[0] + q) % cfg", "q, (to.start[0] + q + 1) % cfg", ROW),
    "values kept as logits": Planted("place, 1, c] = x.gate[b, q, c]", "place, 1, c] = x.kv[b, q, c]", ROW),
    "half of a row": Planted("in T.unroll(cfg.halves):\n        for t", "in T.unroll(1):\n        for t", ROW),
}
OF_POOL = {
    "the places of other rows": Planted("(at.position - ahead + n)", "(at.position + n + 1)", CANDIDATE),
    "the bias of another token": Planted("ape[n % cfg.ratio, c]", "ape[(n + 1) % cfg.ratio, c]", CANDIDATE),
    "a row of the call for the state's": Planted("row >= 0, x.gate", "row >= -1, x.gate", CANDIDATE),
    "a pooled entry that is not written": Planted(
        "placed(x, to):\n                for", "active(x, to):\n                for", "entry "
    ),
    "pooled of another entry": Planted("pooled[b, i, part *", "pooled[b, T.max(i, 1) - 1, part *", "pooled["),
    "a row of the next block": Planted("q, c = i * cfg.ratio + n", "q, c = (i + 1) * cfg.ratio + n", ROW),
}
OF_NORM = {
    "the entry of another": Planted("mean[t, j] = pooled[b, i,", "mean[t, j] = pooled[b, 0,", ENTRY),
    "another row of the page": Planted("i=at.i - to.column[0] * x.cache.shape[1])", "i=at.i % 2)", ENTRY),
    "an entry less": Planted("* cfg.ratio <= to.start[0]", "* cfg.ratio < to.start[0]", ENTRY),
}
OF_KEEP = {
    "a row less": Planted("T.min(S, cfg.capacity)", "T.min(S, cfg.capacity - 1)", "each row that is kept"),
    "a row in another place": Planted("% cfg.capacity - 1 - i", "% cfg.capacity - i", ROW),
    "a place below 0": Planted("place[0] < 0", "place[0] < -1", ROW),
    "the row before": Planted("keep_row(cfg, b, S - 1 - i", "keep_row(cfg, b, T.max(S - 2 - i, 0)", ROW),
}
ALL = {
    (name, what): planted
    for name, errors in zip(KERNELS, (OF_STEP, OF_POOL, OF_NORM, OF_KEEP), strict=True)
    for what, planted in errors.items()
}


def with_error(planted: Planted, folder: Path) -> Any:
    """Return the module of the kernels with an error in its text."""
    text = Path(kernels.__file__).read_text()
    assert planted.right in text
    file = folder / "planted.py"
    file.write_text(text.replace(planted.right, planted.wrong))
    spec = importlib.util.spec_from_file_location("lemmata.kernels.planted", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "what"), ALL)
def test_a_planted_error_is_refuted(name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = with_error(ALL[name, what], tmp_path)
    refuted = failed(name, module)
    assert refuted
    assert any(statement.startswith(ALL[name, what].refuted) for statement in refuted), refuted
