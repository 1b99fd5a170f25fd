"""Packed documents: tokens of several documents in flat tensors, and the contract of an operator on them.

Document d has the tokens cu_seqlens[d] to cu_seqlens[d + 1] - 1 and the entries cu_entries[d] to cu_entries[d + 1] - 1. It is
a sequence of its own: its first token stands at position offset[d], no past token comes before it, and its entries count
from 0, in indices and in columns. So the formula is that of the operator for each document alone.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from .contract import Contract, Size, TensorSpec
from .indexer import OFFSETS

_FLAT = {"B S": "N", "B P+S": "N", "B T": "T", "B": "documents"}
_PROBES = ({"N": 37, "T": 1009, "documents": 3}, {"N": 2**20, "T": 2**18, "documents": 1})
CU_SEQLENS = TensorSpec("cu_seqlens", "documents+1", (torch.int32,), host=True)
CU_ENTRIES = replace(CU_SEQLENS, name="cu_entries")


def packed(contract: Contract) -> Contract:
    """Return the contract of the same operator on packed documents; their bounds come before the offset, or last."""
    sizes = {name: size for name, size in contract.sizes.items() if name not in "BSP"}
    sizes |= {"N": contract.sizes["S"], "documents": Size(0, OFFSETS - 1)}
    inputs, outputs = (tuple(map(_flat, specs)) for specs in (contract.inputs, contract.outputs))
    bounds = (CU_SEQLENS, CU_ENTRIES) if "T" in sizes else (CU_SEQLENS,)
    before = tuple(itertools.takewhile(lambda spec: spec.name != "offset", inputs))
    probes = tuple({**of_batch, **probe} for of_batch, probe in zip(contract.probes, _PROBES, strict=True))
    probes = tuple({name: size for name, size in probe.items() if name in sizes} for probe in probes)
    inputs = (*before, *bounds, *inputs[len(before) :])
    return replace(contract, sizes=sizes, inputs=inputs, outputs=outputs, probes=probes)


def _flat(spec: TensorSpec) -> TensorSpec:
    """Return the tensor without a batch: what comes first in its shape is a token, an entry or a document."""
    for batched, flat in _FLAT.items():
        if spec.shape == batched or spec.shape.startswith(f"{batched} "):
            return replace(spec, shape=flat + spec.shape.removeprefix(batched))
    return spec
