"""Packed documents: an operator on flat tokens is the operator on a batch, for one run of documents after the other.

A run is of documents that follow each other and have as many tokens and entries each: they are a batch, and views of the flat
tensors hold it. An operator gives a sequence the same bits in any batch, so that each document has those that it has alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..reference.contract import Contract, TensorSpec
from . import flops
from .offset import for_each_document
from .registry import check, define
from .sharding import Shards
from .vmap import one_by_one

_MOST = 65535  # sequences of a batch
_BOUNDS = ("cu_seqlens", "cu_entries")


class Run(NamedTuple):
    """Documents that follow each other, as many as ``sequences``, of one length each: where they and what is theirs are."""

    sequences: int
    documents: slice
    tokens: slice
    entries: slice

    @property
    def columns(self) -> int:
        """The entries of each document."""
        return int(self.entries.stop - self.entries.start) // self.sequences

    def of(self, spec: TensorSpec, tensor: Tensor) -> Tensor:
        """Return a view of what is theirs of a tensor of the call; one that is no document's is every document's."""
        first = spec.dims[0][0]
        if not _of_documents(spec):
            return tensor[self.documents] if first == "documents" else tensor
        rows = self.tokens if first == "N" else self.entries
        part: Tensor = tensor[rows].unflatten(0, (self.sequences, (rows.stop - rows.start) // self.sequences))  # type: ignore[no-untyped-call]
        return part[..., : self.columns] if _in_columns(spec) else part


def runs(op: str, x: dict[str, Tensor], tokens: int, entries: int) -> Iterator[Run]:
    """Yield the runs of the documents that bounds by name share out so many tokens and entries to.

    Raises:
        ValueError: the bounds do not begin with 0, fall, or do not end with the number of tokens or entries.
    """
    at = _read(op, "cu_seqlens", x["cu_seqlens"], tokens)
    of_entries = _read(op, "cu_entries", x["cu_entries"], entries) if "cu_entries" in x else [0] * len(at)
    lengths = zip(_differences(at), _differences(of_entries), strict=True)
    first = 0
    for _, alike in itertools.groupby(lengths):
        end = first + len(list(alike))
        for start in range(first, end, _MOST):
            stop = min(start + _MOST, end)
            where = (slice(bounds[start], bounds[stop]) for bounds in (at, of_entries))
            yield Run(stop - start, slice(start, stop), *where)
        first = end


def _read(op: str, name: str, bounds: Tensor, total: int) -> list[int]:
    """Return the bounds, once they are those of documents that share out the total."""
    found: list[int] = bounds.tolist()
    if found[0] != 0:
        raise ValueError(f"{op}: {name}: expected 0 as the first bound, got {found[0]}")
    for before, bound in itertools.pairwise(found):
        if bound < before:
            raise ValueError(f"{op}: {name}: expected bounds that do not fall, got {bound} after {before}")
    if found[-1] != total:
        raise ValueError(f"{op}: {name}: expected {total} as the last bound, got {found[-1]}")
    return found


def _differences(bounds: list[int]) -> list[int]:
    return [end - start for start, end in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Packed:
    """An operator on packed documents.

    Attributes:
        contract: what it takes and returns.
        of_batch: the operator on a batch, which it calls for each run.
        statics: the static parameters in torch's notation.
    """

    contract: Contract
    of_batch: Callable[..., Any]
    statics: str

    def bind(
        self, name: str, formula: flops.Formula, shards: Shards = "none", gradient: OpOverload | None = None
    ) -> PackedCall:
        """Define the torch op of that name and return the call of it.

        Args:
            name: the operator's name.
            formula: the count of floating-point operations of the operator on a batch.
            shards: what DTensors may be sharded along.
            gradient: the packed operator of the gradients.
        """
        names = tuple(spec.name for spec in self.contract.inputs)
        arguments = ", ".join(f"Tensor {name}" for name in names)
        results = ", ".join(f"Tensor {spec.name}" for spec in self.contract.outputs)
        op = define(
            name,
            f"({arguments}, {self.statics}) -> ({results})",
            reference=self._run,
            kernel=self._run,
            fake=self._fake,
            vmap=one_by_one,
            gradient=gradient,
            flops=flops.packed(names, formula),
            shards=shards,
        )
        return PackedCall(self, op)

    def prepared(
        self, tensors: tuple[Tensor | None, ...], offset: int | Tensor, **statics: float | None
    ) -> list[Tensor]:
        """Check a call; return its tensors with the offset, where the contract has one, and with the bounds on the CPU."""
        op, specs = self.contract.op, self.contract.inputs
        x: dict[str, Any] = dict(zip((spec.name for spec in specs if spec.name != "offset"), tensors, strict=True))
        for name in ("q", *_BOUNDS):  # what an offset is made from
            if name in x and not isinstance(x[name], Tensor):
                raise TypeError(f"{op}: {name}: expected a tensor for packed documents, got {type(x[name]).__name__}")
        if x["q"].is_nested:
            raise TypeError(f"{op}: q: expected a strided tensor, got a nested one")
        if any(spec.name == "offset" for spec in specs):
            x["offset"] = for_each_document(op, offset, x["q"], x["cu_seqlens"])
        check(self.contract, *(x[spec.name] for spec in specs), **self._declared(statics))
        return [on_host(op, spec, x[spec.name]) for spec in specs]

    def each(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Run, list[Tensor]]]:
        """Yield the runs, and views of what is theirs of the tensors that the operator on a batch takes."""
        specs = self.contract.inputs
        x = {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}
        entries = x["compressed_kv" if "compressed_kv" in x else "k"].shape[0] if "cu_entries" in x else 0
        for run in runs(self.contract.op, x, x["q"].shape[0], entries):
            yield run, [run.of(spec, x[spec.name]) for spec in specs if spec.name not in _BOUNDS]

    def _run(self, *args: Any) -> Any:
        """Call the operator on a batch for each run; what it returns for the only run is the result."""
        tensors, statics = args[: len(self.contract.inputs)], args[len(self.contract.inputs) :]
        every, columns = list(self.each(tensors)), any(_in_columns(spec) for spec in self.contract.outputs)
        if len(every) == 1 and not columns:
            found = _each(self.of_batch(*every[0][1], *statics))
            specs = zip(self.contract.outputs, found, strict=True)
            return _one_or_all([part.flatten(0, 1) if _of_documents(spec) else part for spec, part in specs])
        results = self._results(args)
        for run, given in every:
            self._put(run, results, _each(self.of_batch(*given, *statics)))
        return _one_or_all(results)

    def _put(self, run: Run, results: list[Tensor], parts: tuple[Tensor, ...]) -> None:
        """Copy what a run has into the results; what is of no document in them is the sum over the runs."""
        for spec, total, part in zip(self.contract.outputs, results, parts, strict=True):
            if _of_documents(spec):
                run.of(spec, total).copy_(part)
            else:
                total += part

    def _declared(self, statics: dict[str, Any]) -> dict[str, Any]:
        """Return the static parameters that the contract knows."""
        return {name: value for name, value in statics.items() if name in self.contract.statics}

    def _fake(self, *args: Any) -> Any:
        return _one_or_all(self._results(args))

    def _results(self, args: tuple[Any, ...]) -> list[Tensor]:
        """Return the results before the first run, once the contract admits the call."""
        specs = self.contract.inputs
        statics = dict(zip(_names(self.statics), args[len(specs) :], strict=False))  # torch leaves defaults out
        sizes = {**self.contract.check(*args[: len(specs)], **self._declared(statics)), **statics}
        return [_unfilled(args[0], spec, sizes) for spec in self.contract.outputs]


@dataclass(frozen=True)
class PackedCall:
    """An operator on packed documents and its torch op."""

    packed: Packed
    op: OpOverload

    def __call__(self, *tensors: Tensor | None, offset: int | Tensor = 0, **statics: Any) -> Any:
        """Call the op, once the call is checked; a scale of None is that of the width of the queries of attention."""
        given = {name: value for name, value in statics.items() if name != "scale" or value is not None}
        ready = self.packed.prepared(tensors, offset, **given)
        if "scale" in statics and "scale" not in given:
            names = [spec.name for spec in self.packed.contract.inputs]
            given["scale"] = ready[names.index("core_q" if "core_q" in names else "q")].shape[-1] ** -0.5
        return self.op(*ready, *given.values())


def _names(statics: str) -> list[str]:
    """Return the names in a list of arguments in torch's notation."""
    return [argument.split()[1].partition("=")[0] for argument in statics.split(", ")]


def _unfilled(like: Tensor, spec: TensorSpec, sizes: dict[str, Any]) -> Tensor:
    """Return memory for what is of documents; -inf where no document's columns reach; 0 for what is a sum over all."""
    shape = [sum(sizes[term] if isinstance(term, str) else term for term in dim) for dim in spec.dims]
    if not _of_documents(spec):
        return like.new_zeros(shape, dtype=spec.dtypes[0])
    if _in_columns(spec):
        return like.new_full(shape, -math.inf, dtype=spec.dtypes[0])
    return like.new_empty(shape, dtype=spec.dtypes[0])


def _each(results: Any) -> tuple[Tensor, ...]:
    """Return the results of an operator as a tuple."""
    return results if isinstance(results, tuple) else (results,)


def _one_or_all(results: list[Tensor]) -> Any:
    """Return results as an operator does: a tuple, unless there is one."""
    return tuple(results) if len(results) > 1 else results[0]


def _of_documents(spec: TensorSpec) -> bool:
    """Return whether the rows of a tensor are tokens or entries, and so each of one document."""
    return spec.dims[0][0] in ("N", "T")


def _in_columns(spec: TensorSpec) -> bool:
    """Return whether the columns of a tensor are entries, each document's from the first column on."""
    return len(spec.dims) > 1 and spec.dims[-1] == ("T",)


def on_host(op: str, spec: TensorSpec, tensor: Tensor) -> Tensor:
    """Return bounds on the CPU, where a run is told from another; and anything else as it is."""
    if not spec.host or tensor.device.type in ("cpu", "meta"):
        return tensor
    if not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{op}: {spec.name}: expected bounds on the CPU in the capture of a CUDA graph, got {tensor.device}"
        )
    return tensor.cpu()
