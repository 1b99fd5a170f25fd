"""The contract: what it accepts, what it refuses, and in what words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inputs import make
from lemmata.reference import arithmetic
from lemmata.reference.contract import Contract, Elements, Size, Static, TensorSpec
from lemmata.reference.sinkhorn import FORWARD

GATHER = Contract(
    op="gather",
    sizes={"B": Size(1, 8), "S": Size(), "P": Size(), "T": Size(0, 100)},
    statics={"D": Static(int, 8, 64), "H": Static.one_of(8, 16, 64), "scale": Static(float, 0.0, 2.0)},
    inputs=(
        TensorSpec("q", "B S D", (torch.bfloat16, torch.float32)),
        TensorSpec("kv", "B P+S D", (torch.bfloat16,)),
        TensorSpec("indices", "B S 4", (torch.int32,), Elements(-1, "T")),
    ),
    outputs=(TensorSpec("out", "B S D", (torch.bfloat16,)),),
)


def tensors(b: int = 2, s: int = 3, p: int = 5, d: int = 16) -> list[torch.Tensor]:
    return [
        torch.zeros(b, s, d, dtype=torch.bfloat16),
        torch.zeros(b, p + s, d, dtype=torch.bfloat16),
        torch.zeros(b, s, 4, dtype=torch.int32),
    ]


@given(st.integers(1, 8), st.integers(0, 9), st.integers(0, 9), st.integers(8, 64))
def test_sizes_are_read_off_the_shapes(b: int, s: int, p: int, d: int) -> None:
    assert GATHER.check(*tensors(b, s, p, d)) == {"B": b, "S": s, "P": p, "D": d}


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda t: [t[0], t[1].float(), t[2]], TypeError, "gather: kv: expected bfloat16, got float32"),
        (lambda t: [t[0].half(), *t[1:]], TypeError, "gather: q: expected bfloat16 or float32, got float16"),
        (lambda t: [t[0], t[1], [1]], TypeError, "gather: indices: expected a tensor, got list"),
        (
            lambda t: [t[0], t[1][:, :2], t[2]],
            ValueError,
            r"kv: expected shape \[B, P\+S, D\] with P in .*, got \[2, 2, 16\]",
        ),
        (
            lambda t: [t[0], t[1], t[2][..., :3]],
            ValueError,
            r"indices: expected shape \[B, S, 4\], got \[2, 3, 3\]",
        ),
        (lambda t: [t[0], t[1][:1], t[2]], ValueError, r"gather: kv: expected shape \[B, P\+S, D\], got \[1, 8, 16\]"),
        (lambda t: [t[0][0], *t[1:]], ValueError, r"gather: q: expected shape \[B, S, D\], got \[3, 16\]"),
        (lambda t: [t[0][None], *t[1:]], ValueError, r"gather: q: expected shape"),
        (lambda t: [t[0], t[1], t[2].to("meta")], ValueError, "gather: indices: expected device cpu, got meta"),
        (lambda t: [t[0][..., :4], t[1][..., :4], t[2]], ValueError, r"with D in \[8, 64\], got \[2, 3, 4\]"),
        (lambda t: [t[0].repeat(5, 1, 1), *t[1:]], ValueError, r"q: expected shape .* with B in \[1, 8\], got"),
    ],
)
def test_what_does_not_fit_is_named(spoil, error, words) -> None:  # type: ignore[no-untyped-def]
    GATHER.check(*tensors())
    with pytest.raises(error, match=words):
        GATHER.check(*spoil(tensors()))


def test_static_parameters_of_equal_value_are_told_apart_by_type() -> None:
    x = torch.zeros(1, 4, 4)
    FORWARD.check(x, iterations=1, eps=1)
    with pytest.raises(TypeError, match="sinkhorn: iterations: expected int, got bool"):
        FORWARD.check(x, iterations=True, eps=1)
    with pytest.raises(TypeError, match="sinkhorn: iterations: expected int, got float"):
        FORWARD.check(x, iterations=1.0, eps=1)


def test_a_parameter_that_is_one_of_a_few() -> None:
    heads = GATHER.statics["H"]
    assert [h for h in range(100) if heads.admits(h)] == [8, 16, 64]
    with pytest.raises(ValueError, match=r"H: expected a value in \{8, 16, 64\}, got 32"):
        heads.check("H", 32)
    dimension = Contract("op", {}, {"H": heads}, (TensorSpec("x", "H", (torch.float32,)),), ())
    assert dimension.check(torch.zeros(16)) == {"H": 16}
    with pytest.raises(ValueError, match=r"op: x: expected shape \[H\] with H in \{8, 16, 64\}, got \[9\]"):
        dimension.check(torch.zeros(9))


def test_a_shape_with_an_undeclared_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"undeclared \['q'\]"):
        Contract("op", {}, {}, (TensorSpec("x", "q", (torch.float32,)),), ())


TILES = Contract(
    op="tiles",
    sizes={"n": Size(), "m": Size()},
    statics={},
    inputs=(
        TensorSpec("scales", "(n+127)//128 2*m", (torch.float32,)),
        TensorSpec("x", "n m", (torch.float32,)),
    ),
    outputs=(),
    relations=("n % 4 == 0", "m <= n"),
)


def test_dimensions_told_by_others_and_relations_are_checked() -> None:
    assert TILES.check(torch.zeros(3, 8), torch.zeros(260, 4)) == {"n": 260, "m": 4}


@pytest.mark.parametrize(
    ("scales", "x", "words"),
    [
        ((2, 8), (260, 4), r"scales: expected shape \[\(n\+127\)//128, 2\*m\], got \[2, 8\]"),
        ((3, 7), (260, 4), r"scales: expected shape"),
        ((3, 8), (262, 4), "with n % 4 == 0"),
        ((1, 16), (4, 8), "with m <= n"),
    ],
)
def test_what_does_not_fit_by_arithmetic_is_named(scales: tuple[int, ...], x: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TILES.check(torch.zeros(scales), torch.zeros(x))


@pytest.mark.parametrize("text", ["n +", "n if m else 2", "f(n)", "1 < n < 3", "n < (m < 2)", "True", "1.5"])
def test_what_is_no_arithmetic_of_sizes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        arithmetic.names(text)


def test_distinct_are_integers_below_a_size() -> None:
    for dtype, size in ((torch.int32, "m"), (torch.float32, "n")):
        spec = TensorSpec("x", "n", (dtype,), Elements(distinct=size))
        with pytest.raises(ValueError, match=f"^op: x: expected distinct integers below a size, got '{size}'"):
            Contract("op", {"n": Size()}, {}, (spec,), ())


@pytest.mark.parametrize("sizes", [{"n": 9, "m": 3}, {"n": 3, "m": 40}, {"n": 0, "m": 0}])
def test_what_is_drawn_is_distinct(sizes: dict[str, int]) -> None:
    spec = TensorSpec("x", "n 2", (torch.int32,), Elements(distinct="m"))
    contract = Contract("op", {"n": Size(), "m": Size()}, {}, (spec,), ())
    drawn = [make(contract, {}, sizes, seed).tensors[0].flatten().tolist() for seed in range(9)]
    assert all(len(set(x)) == len(x) == 2 * sizes["n"] for x in drawn)
    assert not sizes["n"] or {-1, sizes["m"]} & {number for x in drawn for number in x}, "some are none"
