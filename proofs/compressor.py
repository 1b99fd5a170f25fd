"""What is claimed of the kernels of the KV compressor.

``compress_fwd`` is compared with the reference as it stands. Of more candidates, ``compress_pool`` and ``compress_norm`` are each
compared with their part of it, and one put after the other is the reference. Softmaxes are compared over the reals, where it does
not matter what is subtracted from the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from ..kernels import compressor as kernels
from ..kernels.build import PASS_CONFIGS
from ..kernels.compressor import Config
from ..reference import compressor as reference
from ..reference.compressor import BF16, F32, STATICS
from ..reference.contract import Contract, Size, Static, TensorSpec
from ..reference.indexer import OFFSETS
from .engine.base.report import LAYERS
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.layers.comparison import against
from .engine.reference.pull_array import Extent
from .engine.verify import Compare, Compared
from .suite import Proof

Formula = Callable[..., Any]
SAFE = ("L0", "L1")
_STATICS = {name: STATICS[name] for name in ("ratio", "D", "pairs", "past")} | {"overlap": Static(int, 0, 1)}
SIZES = {"B": Size(1, 65535), "S": Size(1, 2**30 - 1), "T": Size(1, 2**30 - 1), "positions": Size(1, 2**24)}
"""Of calls that launch a kernel: there are entries, and a row of angles."""
PROBES = ({"B": 3, "S": 1009, "T": 3, "positions": 4099}, {"B": 1, "S": 2**20, "T": 2**10, "positions": 2**20})
_POOLED, _OUT = TensorSpec("pooled", "B T D", (BF16,)), TensorSpec("out", "B T D", (BF16,))
_ROOM = ("T*ratio+past <= S",)  # all entries' blocks are there

FLAGSHIPS = Config(), Config(128, overlap=False), Config(D=128)
"""Those of attention, and of the indexer."""
OTHERS = Config(past=4), Config(2, 64, pairs=4), Config(3, 256, False, 8), Config(128, 64, past=128), Config(33, overlap=False)
"""With the block before; few and many tokens of a block, with overlap and without."""

FRAGMENT = "a loop over a fragment gets the fragment's own extent from the compiler, in narrower accesses"


def _inputs(cfg: Config) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in (reference.OVERLAP if cfg.overlap else reference.COMPRESS).inputs}


def _contract(cfg: Config, name: str, inputs: tuple[TensorSpec, ...], output: TensorSpec) -> Contract:
    """Return a kernel's contract, of the sizes that its tensors have, with no more entries than positions."""
    text = " ".join(spec.shape for spec in (*inputs, output))
    names = [size for size in SIZES if size in text.split()]
    sizes = {size: SIZES[size] for size in names} | {"T": Size(1, OFFSETS // cfg.ratio)}
    probes = tuple({size: probe[size] for size in names} for probe in PROBES)
    return Contract(
        name, sizes, _STATICS, inputs, (output,), probes, _ROOM if "S" in names else ()
    )


def _whole(cfg: Config) -> tuple[Contract, Formula]:
    def of(*tensors: Any) -> Any:
        return reference.entries(reference.Given(*tensors, cfg.past), _entries(), cfg.eps, BF16)

    return _contract(cfg, "compress_fwd", tuple(_inputs(cfg).values()), _OUT), of


def _pool(cfg: Config) -> tuple[Contract, Formula]:
    x = _inputs(cfg)

    def of(kv: Any, gate: Any, ape: Any, offset: Any) -> Any:
        norm_weight = kv[0, 0, : cfg.D]  # of which the width alone is asked
        return reference.pool(reference.Given(kv, gate, ape, norm_weight, kv, offset, cfg.past), _entries()).total

    return _contract(cfg, "compress_pool", (x["kv"], x["gate"], x["ape"], x["offset"]), _POOLED), of


def _norm(cfg: Config) -> tuple[Contract, Formula]:
    x = _inputs(cfg)

    def of(pooled: Any, norm_weight: Any, rotation: Any, offset: Any) -> Any:
        ape = pooled.new_zeros(cfg.ratio, cfg.D)  # of which the length alone is asked
        given = reference.Given(pooled, pooled, ape, norm_weight, rotation, offset, cfg.past)
        return reference.rotate(reference.normalised(pooled, given, cfg.eps, BF16)[2], given).to(BF16)

    return _contract(cfg, "compress_norm", (_POOLED, x["norm_weight"], x["rotation"], x["offset"]), _OUT), of


def _entries() -> Any:
    """Return the number of entries, which no input has for a dimension."""
    return Extent(nf.variable("T"))


def _tiled(of: Formula, contract: Contract, tilings: tuple[tuple[int, int], ...]) -> Compare:
    """Return the comparison with a reference whose sums are taken tile by tile: extent and tile."""

    def compare(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            for extent, tile in tilings:
                stack.enter_context(nf.tiled(extent, tile))
            return against(of, contract)(kernel, known)

    return compare


def _forward(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield the kernels that make entries: one, or of more candidates two."""
    of_norm = ((cfg.D, cfg.width),)
    claims: dict[Any, tuple[tuple[Contract, Formula], tuple[tuple[int, int], ...]]] = {
        kernels.compress_fwd: (_whole(cfg), of_norm),
        kernels.compress_pool: (_pool(cfg), ()),
        kernels.compress_norm: (_norm(cfg), of_norm),
    }
    given = {"ratio": cfg.ratio, "D": cfg.D, "overlap": int(cfg.overlap), "pairs": cfg.pairs, "past": cfg.past}
    for factory, _ in kernels.forward_kernels(cfg):
        (contract, of), tilings = claims[factory]
        compare = _tiled(of, contract, tilings) if "L2" in layers else None
        yield Proof("compressor", factory(cfg), contract, given, compare, PASS_CONFIGS, layers=layers, **more)


def proofs() -> Iterator[Proof]:
    """Yield the shipped kernels and other shapes."""
    mutants: dict[str, Any] = {"mutate": True, "every": 8}
    for cfg, more in zip(FLAGSHIPS, (mutants, mutants, {}), strict=True):
        yield from _forward(cfg, **more)
    for cfg in OTHERS:
        yield from _forward(cfg)
