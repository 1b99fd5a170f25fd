"""Packed documents for the tests: calls by name of any operator, and what a document gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

import lemmata
from inputs import EXACT, make
from lemmata.reference.contract import Contract
from lemmata.reference.packed import packed
from opspec import OpSpec

Results = tuple[Tensor, ...]
OF_TOKENS = "q", "window_kv", "indices", "weights", "core_q", "lse", "grad_out", "grad_lse", "delta"
OF_ENTRIES = "compressed_kv", "k", "k_scale"
LENGTHS = (  # tokens and entries of each document: alike or not, without either, without both
    ((10, 2), (0, 0), (3, 0), (3, 0), (1, 4), (0, 3), (21, 9), (1, 1)),
    ((5, 3), (5, 3), (5, 3), (5, 3)),
    ((23, 11),),
    ((0, 0), (0, 0)),
    (),
)


@dataclass(frozen=True)
class Case:
    """A call of a public function on packed documents, by name.

    Attributes:
        spec: the operator's record.
        tensors: the flat tensors, the bounds and the offsets by name.
        statics: the static parameters.
        lengths: the tokens and entries of each document.
    """

    spec: OpSpec
    tensors: dict[str, Tensor]
    statics: dict[str, float]
    lengths: Sequence[tuple[int, int]]

    def __call__(self, **other: object) -> Results:
        """The results of the public function, with some arguments exchanged."""
        more = {"indices": None} if self.spec.name == "indexer_loss_dense" else {}
        out = getattr(lemmata, self.spec.contract.op)(**{**self.tensors, **self.statics, **more, **other})
        return out if isinstance(out, tuple) else (out,)

    @property
    def contract(self) -> Contract:
        """That of the packed call."""
        return packed(self.spec.contract)

    def to(self, device: torch.device | str) -> Case:
        """The case on a device, its bounds on the CPU."""
        moved = {name: t if name.startswith("cu_") else t.to(device) for name, t in self.tensors.items()}
        return replace(self, tensors=moved)

    def document(self, d: int) -> Case:
        """The same call of one document, as a batch of one sequence."""
        tokens, entries = (slice(*list(accumulate(of, initial=0))[d : d + 2]) for of in self._lengths)
        alone = {}
        for name, tensor in self.tensors.items():
            if name == "offset":
                alone[name] = tensor[d : d + 1]
            elif name in OF_TOKENS or name in OF_ENTRIES:
                alone[name] = tensor[tokens if name in OF_TOKENS else entries].unsqueeze(0)
            elif name == "sink":
                alone[name] = tensor
        return replace(self, tensors=alone, lengths=())

    @property
    def _lengths(self) -> tuple[list[int], list[int]]:
        return [tokens for tokens, _ in self.lengths], [entries for _, entries in self.lengths]

    def parts(self, name: str, tensor: Tensor) -> list[Tensor]:
        """What each document has of the gradient of the named tensor."""
        return list(tensor.split(self._lengths[name in OF_ENTRIES]))

    def of_documents(self, results: Results) -> list[Results]:
        """What each document has of the results of tokens; of scores, the columns of its own entries."""
        split = zip(*(result.split(self._lengths[0]) for result in results), strict=True)
        if self.spec.contract.op != "indexer_scores":
            return list(split)
        return [(scores[..., :own],) for (scores,), own in zip(split, self._lengths[1], strict=True)]

    def random_like_results(self, seed: int = 0) -> Results:
        """Gradients for all results."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(out.shape, generator=generator).to(out) for out in self())

    def gradients(self, given: Results) -> dict[str, Tensor]:
        """Gradients of the inputs by name, from those of the results."""
        leaves = {n: self.tensors[n].detach().clone().requires_grad_() for n in self.spec.differentiable}
        return dict(zip(leaves, torch.autograd.grad(self(**leaves), list(leaves.values()), given), strict=True))


def case(spec: OpSpec, lengths: Sequence[tuple[int, int]] = LENGTHS[0], at: int = 0, seed: int = 0) -> Case:
    """A case with random numbers; some offsets are not 0, and some indices name none of a document's entries."""
    tokens, entries = [n for n, _ in lengths], [t for _, t in lengths]
    contract = packed(spec.contract)
    sizes = {"N": sum(tokens), "T": sum(entries), "documents": len(lengths), "K": 6}
    call = make(contract, spec.configurations[at], sizes, seed, EXACT if spec.exact else 1.0)
    x = dict(zip((s.name for s in contract.inputs), call.tensors, strict=True))
    for name, of in (("cu_seqlens", tokens), ("cu_entries", entries)):
        if name in x:
            x[name] = torch.tensor(list(accumulate(of, initial=0)), dtype=torch.int32)
    if "indices" in x:
        x["indices"] = x["indices"].remainder(max(entries, default=0) + 2) - 1
    if "offset" in x:
        x["offset"] = torch.arange(len(lengths), dtype=torch.int32) % 3
    return Case(spec, x, call.statics, lengths)
