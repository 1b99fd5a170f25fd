"""How an operator runs on DTensors: shards of the batch, and of the heads where these do not meet.

torch's tensors of several devices are known here by their type. The rules are registered when the first of them comes,
as importing ``torch.distributed.tensor`` takes longer than all of lemmata.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload

Shards = Literal["batch", "heads", "leading", "heads of tokens", "none"]
"""What the shards may be of.

The batch; the batch or the heads; any dimension but the last two; the heads alone, where tokens are packed; nothing.
"""

_PLAIN = {Tensor, torch.nn.Parameter}
_OF_HEADS = {
    "q": 2,
    "out": 2,
    "lse": 2,
    "delta": 2,
    "sink": 0,
}  # the dimension of the heads, by names without ``grad_``
_PARAMETERS = {"sink", "fn", "scale", "base", "ape", "norm_weight", "rotation"}  # what is the same for all tokens
_FEWEST_HEADS = 8  # in a shard: that of the contracts
_OPERATORS: list[tuple[OpOverload, Shards]] = []


def shardable(op: OpOverload, shards: Shards) -> None:
    """Note what DTensors of the operator may be sharded along."""
    _OPERATORS.append((op, shards))


def accept(op: str, tensors: Sequence[Tensor | None]) -> None:
    """Let DTensors through, all or none.

    Raises:
        TypeError: there are DTensors and others.
    """
    if _PLAIN.issuperset(map(type, tensors)) or "torch.distributed.tensor" not in sys.modules:
        return
    from torch.distributed.tensor import DTensor

    given = [t for t in tensors if isinstance(t, Tensor)]
    distributed = [isinstance(t, DTensor) for t in given]
    if not any(distributed):
        return
    _register()
    if not all(distributed):
        raise TypeError(f"{op}: expected DTensors only, got a Tensor beside them: replicate it by distribute_tensor")


@functools.cache
def _register() -> None:
    from torch.distributed.tensor.experimental import register_sharding

    for op, shards in _OPERATORS:
        register_sharding(op)(functools.partial(_placements, op, shards))


def _placements(op: OpOverload, shards: Shards, *args: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return what ``register_sharding`` wants for one dimension of a mesh: placements of the results and arguments."""
    from torch.distributed.tensor import Replicate, Shard

    def of_batch(name: str) -> Any:
        return of_leading(name, 0)

    def of_leading(name: str, dim: int) -> Any:
        return Replicate() if name in _PARAMETERS else Shard(dim)

    def of_heads(name: str) -> Any:
        if name not in _OF_HEADS:
            return Replicate()
        return Shard(max(_OF_HEADS[name] - 1, 0) if shards == "heads of tokens" else _OF_HEADS[name])

    ways: list[Callable[[str], Any]] = [lambda _: Replicate()]
    if shards == "leading":
        names = [a.name for a in op._schema.arguments]
        widest = args[names.index("x") if "x" in names else 0]
        ways += [functools.partial(of_leading, dim=dim) for dim in range(len(widest.shape) - 2)]
    elif shards in ("batch", "heads"):
        ways.append(of_batch)
    if shards in ("heads", "heads of tokens"):
        queries = args[[a.name for a in op._schema.arguments].index("q")]
        if queries.shape[-2] % (_FEWEST_HEADS * queries.mesh.size()) == 0:
            ways.append(of_heads)
    return [_placed(op, args, way) for way in ways]


def _placed(op: OpOverload, args: Sequence[Any], of: Callable[[str], Any]) -> tuple[list[Any], list[Any]]:
    """Return the placements of the results and of the arguments, from those of the forward's tensors by their names.

    Where the results are gradients, that of what all shards read is a sum over the shards.
    """
    from torch.distributed.tensor import Partial, Replicate

    split = of("q") != Replicate()

    def of_result(name: str) -> Any:
        at = of(name.removeprefix("grad_"))
        return Partial() if name.startswith("grad_") and split and at == Replicate() else at

    arguments = zip(op._schema.arguments, args, strict=False)
    placed = [
        of(a.name.removeprefix("grad_")) if "Tensor" in str(a.type) and x is not None else None for a, x in arguments
    ]
    return [of_result(r.name) for r in op._schema.returns], placed
