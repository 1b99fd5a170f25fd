"""What ``verify`` may be given: kernels in each form that TileLang has, and one line of error for anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

tilelang = pytest.importorskip("tilelang")
import tilelang.language as T  # noqa: E402

from lemmata.proofs.engine.verify import verify  # noqa: E402
from lemmata.reference.contract import Contract, Elements, Size, Static, TensorSpec  # noqa: E402

FLOAT = (torch.float32,)
PROBES = {"n": 1009}, {"n": 2**20}


def contract(shape: str = "n", **changes: Any) -> Contract:
    """The contract of doubling, with changes."""
    tensors = (TensorSpec("x", shape, FLOAT),), (TensorSpec("y", "n", FLOAT),)
    return replace(Contract("double", {"n": Size(1, 2**20)}, {}, *tensors, PROBES), **changes)


def doubling(threads: int = 128, guarded: bool = True) -> Any:
    """A kernel that doubles; without its guard it relies on the compiler's."""
    n = T.dynamic("n")

    @T.prim_func
    def double(x: T.Tensor((n,), "float32"), y: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, threads), threads=threads) as block:
            for i in T.Parallel(threads):
                if block * threads + i < n or not guarded:
                    y[block * threads + i] = x[block * threads + i] * 2

    return double


STRICT = {tilelang.PassConfigKey.TL_DISABLE_SAFE_MEMORY_ACCESS: True}
decorated = tilelang.jit(doubling)
strict = tilelang.jit(doubling, pass_configs=STRICT)


def test_a_decorated_function_is_proved_as_its_kernel_is() -> None:
    bare, jitted = (verify(kernel, contract(), reference=lambda x: x * 2) for kernel in (doubling(), decorated))
    assert jitted.holds
    assert [(layer.name, layer.proved) for layer in jitted.layers] == [
        (layer.name, layer.proved) for layer in bare.layers
    ]


def test_parameters_of_a_decorated_function_are_taken_from_the_statics() -> None:
    report = verify(decorated, contract(), statics={"threads": 64}, layers=["L0"])
    assert report.holds
    assert report.statics == {"threads": 64}


@pytest.mark.parametrize(("kernel", "relies"), [(decorated, True), (strict, False)], ids=["guards", "no guards"])
def test_the_pass_configs_of_a_decorated_function_are_those_of_its_build(kernel: Any, relies: bool) -> None:
    report = verify(kernel, contract(), statics={"guarded": False}, layers=["L0"])
    assert report.holds is relies
    assert not report.complete  # that it relies on the guards is left aside


def test_a_contract_is_read_off_a_kernel() -> None:
    read = Contract.of(doubling(), sizes={"n": Size(1, 2**20)}, outputs=["y"])
    assert [(s.name, s.shape, s.dtypes) for s in read.tensors] == [("x", "n", FLOAT), ("y", "n", FLOAT)]
    assert read.probes == ({"n": 1010}, {"n": 2**20})
    assert verify(doubling(), read, reference=lambda x: x * 2).holds
    assert not verify(doubling(), read, reference=lambda x: x * 3).holds
    assert Contract.of(decorated, sizes=read.sizes, outputs=["y"]).tensors == read.tensors


WRONG: Mapping[str, tuple[Callable[[], object], type[Exception], str]] = {
    "factory": (
        lambda: verify(doubling, contract()),
        TypeError,
        "kernel: expected a PrimFunc or a @tilelang.jit function, got function",
    ),
    "no kernel": (lambda: verify(None, contract()), TypeError, "kernel: expected a PrimFunc .* got NoneType"),
    "no contract": (lambda: verify(doubling(), None), TypeError, "contract: expected a Contract, got NoneType"),
    "static": (
        lambda: verify(doubling(), contract(statics={"z": Static(int, 1, 4)})),
        ValueError,
        r"statics: expected values of \['z'\], got \[\]",
    ),
    "static's value": (
        lambda: verify(doubling(), contract(statics={"z": Static(int, 1, 4)}), statics={"z": 9}),
        ValueError,
        r"statics: z: expected a value in \[1, 4\], got 9",
    ),
    "architecture": (
        lambda: verify(doubling(), contract(), arch="sm90"),
        ValueError,
        "arch: expected sm_90a or .*, got 'sm90'",
    ),
    "pass config": (
        lambda: verify(doubling(), contract(), pass_configs={"tl.nonsense": True}),
        ValueError,
        "pass_configs: .*tl.nonsense",
    ),
    "waiver": (
        lambda: verify(doubling(), contract(), waivers=["exp"]),
        TypeError,
        "waivers: expected Waiver objects, got 'exp'",
    ),
    "solver": (
        lambda: verify(doubling(), contract(), solver="z4"),
        ValueError,
        "solver: expected z3 or cvc5, got 'z4'",
    ),
    "steps": (lambda: verify(doubling(), contract(), rlimit=0), ValueError, "rlimit: expected at least 1, got 0"),
    "folder": (lambda: verify(doubling(), contract(), smt="out"), TypeError, "smt: expected a Path, got 'out'"),
    "power in a shape": (lambda: contract("n**2"), ValueError, r"x: expected a shape of names, .*, got 'n\*\*2'"),
    "relation": (lambda: contract(relations=("n & 1",)), ValueError, "expected integers, names, .*, got 'n & 1'"),
    "size in a relation": (lambda: contract(relations=("n < m",)), ValueError, r"'n < m' uses undeclared \['m'\]"),
    "updated": (lambda: contract(updated=("x",)), ValueError, r"updated: expected names of outputs, got \['x'\]"),
    "tuple as a shape": (lambda: contract("(n, 4)"), ValueError, r"x: expected a shape of names, .*, got '\(n, 4\)'"),
    "no shape": (lambda: contract(""), ValueError, "x: expected a shape of names, .*, got ''"),
    "size": (lambda: contract("m"), ValueError, r"shape 'm' of x uses undeclared \['m'\]"),
    "number as a size": (lambda: contract(sizes={"n": 1000}), TypeError, "double: n: expected a Size, got 1000"),
    "dtype": (
        lambda: contract(inputs=(TensorSpec("x", "n", ("float32",)),)),
        TypeError,
        "x: expected a tuple of torch dtypes",
    ),
    "elements": (
        lambda: contract(inputs=(TensorSpec("x", "n", (torch.int32,), Elements(0, "m")),)),
        ValueError,
        "x: expected elements below a size, got 'm'",
    ),
    "output": (
        lambda: Contract.of(doubling(), sizes={"n": Size(1, 9)}, outputs=["z"]),
        ValueError,
        "double: expected names among x, y, got z",
    ),
    "dimension": (lambda: Contract.of(doubling(), sizes={"m": Size()}, outputs=["y"]), ValueError, "uses undeclared"),
    "name": (
        lambda: contract(inputs=(TensorSpec("x", "n", FLOAT),) * 2),
        ValueError,
        "expected a name for each tensor, got x twice",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_none_is_refused_in_one_line(name: str) -> None:
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


REFERENCES: Mapping[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "raises": (lambda x: x * (1 // 0), "integer division or modulo by zero"),
    "asserts": (lambda x: (_ for _ in ()).throw(AssertionError()), "AssertionError"),
    "two outputs": (lambda x: (x * 2, x), "the reference returns 2 results, the contract has 1"),
    "none": (lambda x: None, "NoneType"),
    "number": (lambda x: 2.0, "y: shape"),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_that_cannot_be_read_leaves_the_other_layers(name: str) -> None:
    reference, message = REFERENCES[name]
    report = verify(doubling(), contract(), reference=reference)
    verdicts = {layer.name: layer.proved == layer.conditions for layer in report.layers}
    assert verdicts == {"L0": True, "L1": True, "L2": False, "range": False}
    assert all(message in failure.statement for layer in report.layers[2:] for failure in layer.failures)
