"""The mutator: every kind of error, each once, where it says, and nothing that the kernel already was."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tilelang import tvm

from corpus_kernels import matmul, online_softmax
from lemmata.kernels import sinkhorn
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.compiler import extract
from lemmata.proofs.engine.guards.mutate import Mutant, mutants
from verdicts import STRICT, opened

ir, tirx = tvm.ir, tvm.tirx
FACTORIES = {"matmul": matmul, "online_softmax": online_softmax}
FILES = {
    "copy_1d": "coverage/copy_right",
    "copy_2d": "coverage/copy_of_tiles_right",
    "gather": "bounds/gather_right",
    "softmax": "equality/softmax_right",
    "strided": "bounds/strided_right",
    "transpose": "races/transpose_right",
}


def example(name: str) -> Any:
    """A correct kernel in one of the styles that TileLang offers."""
    return FACTORIES[name]() if name in FACTORIES else opened(FILES[name]).kernel


@cache
def of_sinkhorn() -> list[Mutant]:
    return mutants(sinkhorn.sinkhorn_fwd(sinkhorn.Config(n=4)))


@cache
def of_example(name: str) -> list[Mutant]:
    return mutants(example(name))


def test_sinkhorn_has_many_distinct_mutants() -> None:
    found = of_sinkhorn()
    assert len(found) >= 80
    assert len({m.name for m in found}) == len(found)
    assert len({ir.structural_hash(m.prim_func) for m in found}) == len(found)
    assert len({m.operator for m in found}) >= 15
    no_operator_dominates = max(Counter(m.operator for m in found).values()) < len(found) / 3
    assert no_operator_dominates


def test_the_same_kernel_has_the_same_mutants() -> None:
    again = mutants(sinkhorn.sinkhorn_fwd(sinkhorn.Config(n=4)))
    assert [m.name for m in again] == [m.name for m in of_sinkhorn()]
    assert all(ir.structural_equal(a.prim_func, b.prim_func) for a, b in zip(again, of_sinkhorn(), strict=True))


def test_mutants_say_where_they_are() -> None:
    source = Path(sinkhorn.__file__).read_text().splitlines()
    for mutant in of_sinkhorn():
        assert mutant.site.file is not None
        assert Path(mutant.site.file).name == "sinkhorn.py"
        assert mutant.site.line is not None
        assert f"line {mutant.site.line}" in mutant.name
    stores = [m for m in of_sinkhorn() if m.operator == "dropped statement"]
    for mutant in stores:  # the store of that line is to the buffer that the mutant no longer stores to
        assert mutant.site.text.split("[")[0] in source[mutant.site.line - 1]


def test_no_mutant_is_the_kernel_or_another_mutant() -> None:
    kernel = example("copy_1d")
    functions = [kernel, *(m.prim_func for m in of_example("copy_1d"))]
    for i, f in enumerate(functions):
        assert not any(ir.structural_equal(f, g) for g in functions[:i])


def test_the_kernel_itself_is_left_alone() -> None:
    kernel = example("online_softmax")
    before = ir.structural_hash(kernel)
    mutants(kernel)
    assert ir.structural_hash(kernel) == before


EXPECTED = [
    ("copy_1d", "index+1", "x[i] -> x[i + 1]"),
    ("copy_1d", "index-1", "out[i] = ... -> out[i - 1] = ..."),
    ("copy_1d", "index+1", "i = bx * 128 + tx -> i = bx * 128 + tx + 1"),
    ("copy_1d", "stride", "bx * 128 -> bx * 127"),
    ("copy_1d", "grid", "for bx in 0:(count + 127) // 128 -> for bx in 0:(count + 127) // 128 - 1"),
    ("copy_1d", "threads", "threads [128, 1, 1] -> threads [127, 1, 1]"),
    ("copy_1d", "floor for ceil", "for bx in 0:(count + 127) // 128 -> for bx in 0:count // 128"),
    ("copy_1d", "dropped guard", "if i < count -> always"),
    ("copy_1d", "inverted guard", "if i < count -> if not (i < count)"),
    ("copy_1d", "off by one", "i < count -> i <= count"),
    ("copy_1d", "off by one", "i < count -> i < count - 1"),
    ("copy_1d", "swapped operands", "i < count -> count < i"),
    ("copy_1d", "dropped statement", "out[i] = x[i]"),
    ("copy_2d", "loop end", "for i in 0:32 -> for i in 0:31"),
    ("copy_2d", "loop start", "for j in 0:32 -> for j in -1:32"),
    ("copy_2d", "wrong variable", "bx * 32 + i -> bx * 32 + j"),
    ("copy_2d", "dropped operand", "bx * 32 + i -> i"),
    ("copy_2d", "other operator", "m < M and n < N -> m < M or n < N"),
    ("gather", "dropped guard", "T.if_then_else(indices[row] >= 0, kept, 0) -> kept"),
    ("gather", "off by one", "indices[row] >= 0 -> indices[row] > 0"),
    ("gather", "other operator", "T.max(indices[row], 0) -> T.min(indices[row], 0)"),
    ("gather", "dropped operand", "T.max(indices[row], 0) -> indices[row]"),
    ("softmax", "other operator", "T.exp(p[i, j] - top[i]) -> T.exp2(p[i, j] - top[i])"),
    ("softmax", "swapped operands", "p[i, j] / total[i] -> total[i] / p[i, j]"),
    ("softmax", "dropped operand", "p[i, j] - top[i] -> p[i, j]"),
    ("softmax", "wrong buffer", "total[i] -> top[i]"),
    ("online_softmax", "dropped rescale", "acc[i] * T.exp(before[i] - top[i]) -> acc[i]"),
    ("transpose", "wrong axis", "tile[lane, j] -> tile[j, lane]"),
    ("transpose", "dropped barrier", 'T.tvm_storage_sync("shared")'),
    ("strided", "stride", 'T.Cast("int64", i) * 4096 -> T.Cast("int64", i) * 4097'),
    ("gather", "constant", "T.if_then_else(indices[row] >= 0, kept, 0) -> T.if_then_else(indices[row] >= 0, kept, 1)"),
    ("strided", "late widening", 'T.Cast("int64", i) * 4096 -> T.Cast("int64", i * 4096)'),
]


@pytest.mark.parametrize(("name", "operator", "change"), EXPECTED)
def test_operators(name: str, operator: str, change: str) -> None:
    assert any(m.name.startswith(f"{operator} @ {change}") and m.operator == operator for m in of_example(name))


def test_tile_operations() -> None:
    """The kind, axis and clear flag of a reduction, a gemm's flags, a fill's value, and each operation deleted."""
    by_operator: dict[str, list[str]] = {}
    for mutant in of_example("online_softmax") + of_example("matmul"):
        by_operator.setdefault(mutant.operator, []).append(mutant.name)
    assert any('"max", 1' in n and '"min", 1' in n for n in by_operator["other reduction"])
    assert any('"sum", 1' in n and '"sum", 0' in n for n in by_operator["wrong axis"])
    assert sum("T.gemm" in n for n in by_operator["flag"]) == 3
    assert sum("T.reduce" in n for n in by_operator["flag"]) == 3
    assert any("-1.07374182e+09" in n for n in by_operator["constant"])
    for operation in ("T.fill", "T.copy", "T.reduce", "T.gemm"):
        assert any(n.startswith(f"dropped statement @ {operation}(") for n in by_operator["dropped statement"])


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("copy_1d", "coverage/copy_floor_grid"),
        ("copy_1d", "coverage/copy_overlapping_blocks"),
        ("matmul", "wrong axis"),
        ("matmul", "dropped tail"),
        ("online_softmax", "missing rescale"),
        ("online_softmax", "missing rescale of the total"),
        ("online_softmax", "maximum forgotten"),
        ("transpose", "races/transpose_no_barrier"),
    ],
)
def test_planted_errors_are_among_the_mutants(name: str, bug: str) -> None:
    """What a person wrote as an error in the source, the mutator makes of the correct kernel."""
    planted = FACTORIES[name](bug) if name in FACTORIES else opened(bug).kernel
    assert sum(ir.structural_equal(m.prim_func, planted) for m in of_example(name)) == 1


def test_barriers_of_the_lowered_kernel() -> None:
    device = extract.lower(matmul(), guards=False, pass_configs=STRICT).device
    barriers = _barriers(device)
    dropped = _without_a_barrier(device)
    assert barriers == len(dropped) == 2
    assert all(_barriers(m.prim_func) == barriers - 1 for m in dropped)
    assert len({m.name for m in dropped}) == 2
    assert _without_a_barrier(extract.lower(example("copy_1d"), guards=False).device) == []


def _without_a_barrier(prim_func: Any) -> list[Mutant]:
    return [m for m in mutants(prim_func) if m.operator == "dropped barrier"]


def _barriers(prim_func: Any) -> int:
    return prim_func.script(show_meta=False).count("tvm_storage_sync")


def test_unknown_nodes_are_refused() -> None:
    kernel = example("copy_1d")
    shuffle = tirx.Shuffle([tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), 4)], [0])
    with pytest.raises(Unsupported, match="Shuffle"):
        mutants(kernel.with_body(tirx.Evaluate(shuffle)))


def test_mutants_of_sinkhorn_lower() -> None:
    """A mutant that the compiler refuses tells nothing about the proofs."""
    sample = of_sinkhorn()[::32]
    lowered = [m for m in sample if _lowers(m.prim_func)]
    assert len(lowered) >= 0.9 * len(sample)


def _lowers(prim_func: Any) -> bool:
    try:
        extract.lower(prim_func, guards=False)
    except Exception:  # the compiler's own, of many kinds
        return False
    return True
