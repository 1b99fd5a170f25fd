"""Examples for the tests of the proof engine: kernels, their contracts and references, and what is planted in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from corpus_kernels import copy_1d, copy_2d, gather, matmul, online_softmax, softmax, strided, transpose
from lemmata.reference.contract import Contract, Elements, Size, TensorSpec

STRICT = {"tl.disable_safe_memory_legalize": True}
FLOAT, HALF, INT = (torch.float32,), (torch.float16,), (torch.int32,)
ROWS = Size(high=2**31 - 256)  # along gridDim.x, in blocks of up to 256
LIMIT = 65535  # blocks along gridDim.y


@dataclass(frozen=True)
class Example:
    """A kernel, what it should compute, and what can be wrong with it.

    Args:
        build: makes the PrimFunc; ``build(bug)`` makes it with that planted error.
        contract: its tensors and sizes, by the names that the PrimFunc uses.
        reference: the outputs as a function of the inputs, and by name of the sizes that no input shows.
        bugs: each planted error, and the kinds of condition of which at least one must fail.
        pass_configs: the options of the compiler that it is built with.
    """

    build: Callable[..., Any]
    contract: Contract
    reference: Callable[..., Tensor]
    bugs: Mapping[str, tuple[str, ...]]
    pass_configs: Mapping[str, object] = field(default_factory=lambda: dict(STRICT))


def gather_reference(table: Tensor, indices: Tensor) -> Tensor:
    """Zero where the index is -1."""
    return torch.where((indices >= 0)[:, None], table[indices.clamp(min=0).long()], 0.0)


def strided_reference(x: Tensor, count: int, stride: int = 4096) -> Tensor:
    """``count`` elements at multiples of ``stride``, zero beyond the end."""
    start = torch.arange(count, device=x.device) * stride
    return torch.where(start < len(x), x[start.clamp(max=len(x) - 1)], 0.0)


def _spec(name: str, shape: str, dtypes: tuple[torch.dtype, ...] = FLOAT, **elements: Any) -> TensorSpec:
    return TensorSpec(name, shape, dtypes, Elements(**elements))


def _contract(op: str, sizes: Mapping[str, Size], *tensors: TensorSpec) -> Contract:
    """All tensors but the last are inputs."""
    return Contract(op, sizes, {}, tensors[:-1], tensors[-1:])


_TILES = Size(high=LIMIT * 32)  # along gridDim.y in tiles of 32
_MATMUL = _contract(
    "matmul",
    {"M": ROWS, "N": _TILES, "K": ROWS},
    _spec("a", "M K", HALF, finite=True),
    _spec("b", "K N", HALF, finite=True),
    _spec("c", "M N"),
)
_ONLINE = _contract(
    "online_softmax",
    {"rows": ROWS},
    _spec("x", "rows 64", finite=True),
    _spec("v", "rows 64", finite=True),
    _spec("out", "rows"),
)
_GATHER = _contract(
    "gather",
    {"count": ROWS, "entries": Size(low=1)},
    _spec("table", "entries 32"),
    _spec("indices", "count", INT, low=-1, high="entries"),
    _spec("out", "count 32"),
)

EXAMPLES: dict[str, Example] = {
    "matmul": Example(
        matmul,
        _MATMUL,
        lambda a, b: a.float() @ b.float(),
        {
            "off-by-one guard": ("bounds",),
            "overlapping tiles": ("coverage", "uniqueness"),
            "dropped tail": ("equivalence",),
            "wrong axis": ("equivalence",),
        },
    ),
    "softmax": Example(
        softmax,
        _contract("softmax", {"rows": ROWS}, _spec("x", "rows 32", finite=True), _spec("out", "rows 32")),
        lambda x: x.softmax(-1),
        {
            "off-by-one guard": ("bounds",),
            "wrong axis": ("equivalence",),
            "maximum not subtracted": ("range",),
        },
    ),
    "online_softmax": Example(
        online_softmax,
        _ONLINE,
        lambda x, v: (x.softmax(-1) * v).sum(-1),
        {
            "missing rescale": ("equivalence",),
            "missing rescale of the total": ("equivalence",),
            "maximum forgotten": ("range",),
        },
    ),
    "copy_1d": Example(
        copy_1d,
        _contract("copy_1d", {"count": ROWS}, _spec("x", "count"), _spec("out", "count")),
        lambda x: x.clone(),
        {
            "off-by-one guard": ("bounds",),
            "floor grid": ("coverage",),
            "overlapping blocks": ("uniqueness", "coverage"),
        },
    ),
    "copy_2d": Example(
        copy_2d,
        _contract("copy_2d", {"M": ROWS, "N": _TILES}, _spec("x", "M N"), _spec("out", "M N")),
        lambda x: x.clone(),
        {
            "off-by-one guard": ("bounds",),
            "overlapping tiles": ("uniqueness", "coverage"),
            "wrong axis": ("bounds",),
        },
    ),
    "gather": Example(
        gather,
        _GATHER,
        gather_reference,
        {
            "off-by-one guard": ("bounds",),
            "index not masked": ("bounds",),
            "mask dropped": ("equivalence",),
            "next row": ("bounds",),
        },
    ),
    "strided": Example(
        strided,
        _contract(
            "strided",
            {"count": ROWS, "length": Size(low=1, high=2**40)},
            _spec("x", "length"),
            _spec("out", "count"),
        ),
        strided_reference,
        {"int32 product": ("overflow",)},
    ),
    "transpose": Example(
        transpose,
        _contract("transpose", {"M": ROWS, "N": _TILES}, _spec("x", "M N"), _spec("out", "N M")),
        lambda x: x.T.contiguous(),
        {
            "off-by-one guard": ("bounds",),
            "dropped barrier": ("race",),
            "wrong axis": ("equivalence",),
        },
        {**STRICT, "tl.disable_thread_storage_sync": True},  # the compiler would insert the barrier again
    ),
}
