"""The names that proofs bind are declared in the kernels, and each is the name of a loop or a buffer there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("tilelang")

from tilelang import tvm

from lemmata.kernels import csa, hca, sinkhorn, sparse_attention, sparse_attention_config, topk_check

tirx = tvm.tirx

SHIPPED = [
    (factory, sparse_attention_config.Config(splits=splits), sparse_attention.NAMES)
    for factory in (csa.csa_fwd, hca.hca_fwd)
    for splits in (1, 3)
] + [
    (sinkhorn.sinkhorn_bwd, sinkhorn.Config(), sinkhorn.NAMES),
    (topk_check.topk_check, topk_check.Config(), topk_check.NAMES),
]


def declared(names: Any) -> Iterator[str]:
    """Yield the names, those of a pair one by one."""
    for name in names:
        yield from (name,) if isinstance(name, str) else name


def occurring(kernel: Any) -> set[str]:
    """Return the names of a kernel's loops and of the buffers that it accesses."""
    found = set()

    def visit(node: Any) -> None:
        if isinstance(node, tirx.For):
            found.add(node.loop_var.name)
        elif isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
            found.add(node.buffer.name)

    tirx.stmt_functor.post_order_visit(kernel.body, visit)
    return found


@pytest.mark.parametrize(("factory", "config", "names"), SHIPPED)
def test_each_declared_name_occurs(factory: Any, config: Any, names: Any) -> None:
    assert set(declared(names)) <= occurring(factory(config))


def test_a_name_that_does_not_occur_is_missed() -> None:
    renamed = sparse_attention.NAMES._replace(row_sum=("row_sum0", "total1"))
    assert set(declared(renamed)) - occurring(hca.hca_fwd(sparse_attention_config.Config())) == {"total1"}
