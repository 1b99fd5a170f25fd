"""One order of arguments: what a public function, its reference, its kernels and its torch ops share, they name alike."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

import lemmata
from lemmata.operators import OPERATORS, Operator
from specs import SPECS

KERNELS = Path(__file__).parent.parent / "kernels"


def disordered(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two signatures have names in common that come in another order."""
    return [name for name in one if name in other] != [name for name in other if name in one]


def signatures(operator: Operator) -> Iterator[tuple[str, list[str]]]:
    """Yield all signatures that concern an operator, by what has them."""
    for function in operator.functions:
        yield function, list(inspect.signature(getattr(lemmata, function)).parameters)
        if written := getattr(operator.module("reference"), function, None):
            yield f"the reference {function}", list(inspect.signature(written).parameters)
        for name in dir(torch.ops.lemmata):
            if name.startswith(f"{function}_") and name.endswith("_fwd"):
                schema = getattr(torch.ops.lemmata, name).default._schema
                yield f"the op {name}", [argument.name for argument in schema.arguments]
    for spec in (spec for spec in SPECS if spec.operator == operator.name):
        yield f"the contract {spec.name}", [t.name for t in spec.contract.inputs]
    for module, _, factory in (kernel.partition(":") for kernel in operator.kernels):
        if factory.removesuffix("_fwd") in {*operator.functions, *(f"{f}_fp8" for f in operator.functions)}:
            yield f"the kernel {factory}", tensors(KERNELS / f"{module}.py", factory)


def tensors(file: Path, factory: str) -> list[str]:
    """Return the tensors that a kernel is given, in order."""
    functions = [
        n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef) and n.name == factory
    ]
    arguments = [a for f in functions for a in f.args.args if a.annotation and "Tensor" in ast.unparse(a.annotation)]
    return [a.arg for a in arguments]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
def test_arguments_come_in_one_order(operator: Operator) -> None:
    found = list(signatures(operator))
    assert {name.rpartition(" ")[0] for name, _ in found} >= {"", "the reference", "the op", "the contract"}
    for (one, names), (other, others) in itertools.combinations(found, 2):
        assert not disordered(names, others), f"{one}: {names}; {other}: {others}"


def test_another_order_is_noticed() -> None:
    assert disordered(["q", "sink", "offset"], ["q", "offset", "window", "sink"])
    assert not disordered(["q", "sink"], ["q", "indices", "sink", "offset"])


def test_the_tensors_of_a_kernel_are_found() -> None:
    assert tensors(KERNELS / "csa.py", "csa_fwd")[:4] == ["q", "window_kv", "compressed_kv", "indices"]
