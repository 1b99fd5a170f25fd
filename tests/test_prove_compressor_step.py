"""What steps of the compressor need for the absence of races is claimed, and no less would do."""

from __future__ import annotations

from dataclasses import replace

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
