"""What is claimed of the kernels of compressor steps.

No two sequences of a call have one slot, nor two elements of the table one page: that is the contract's. So no block writes
what another one reads or writes. Of the kernels that keep rows beside entries it is claimed of calls that are short enough, of
the others of any.

What they write is the reference's (``compressor_step_claims``): the entries, of ``compress_step_norm`` those of what
``compress_step_pool`` pools, which is the reference's too, and the rows that states keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..kernels import compressor_step as kernels
from ..kernels.build import PASS_CONFIGS
from ..kernels.compressor_step import Config
from ..reference import compressor_step as reference
from ..reference.compressor import BF16
from ..reference.contract import Contract, Size, Static, TensorSpec
from .compressor_step_claims import compared
from .engine.base.report import LAYERS
from .suite import Proof

SAFE = ("L0", "L1")
SIZES = {name: Size(1, size.high) for name, size in reference.SIZES.items()} | {"T": Size(1, 2**30 - 1)}
"""What holds of a call that launches a kernel: there is something of everything."""
_STATICS = {name: static for name, static in reference.STATICS.items() if name != "eps"}
_STATICS |= {name: Static(int, 0, 1) for name in ("overlap", "keeps", "simulate_fp8")}
_PROBE = {"B": 3, "S": 1, "positions": 4099, "states": 5, "pages": 1013, "page": 7, "columns": 11, "T": 1}
_LARGE = {"B": 128, "S": 1, "positions": 2**20, "states": 256, "pages": 2**15, "page": 64, "columns": 2**12, "T": 1}
_POOLED = TensorSpec("pooled", "B T D", (BF16,))


def _contract(cfg: Config, factory: Callable[..., Any], given: str, *written: str) -> Contract:
    """Return a kernel's contract: the names of what it is given, and of what it writes into."""
    specs = {spec.name: spec for spec in (reference.STEP_OVERLAP if cfg.overlap else reference.STEP).inputs}
    specs["pooled"] = _POOLED
    names = given.split()
    text = " ".join(specs[name].shape for name in (*names, *written))
    sizes = {name: size for name, size in SIZES.items() if name in text.split()}
    probes = tuple({name: probe[name] for name in sizes} for probe in (_PROBE, _LARGE))
    relations = ["ratio*T == S+ratio-1-(S+ratio-1)%ratio"] if "T" in sizes else []
    keeps = cfg.keeps and factory is not kernels.compress_keep
    relations += [f"S+{cfg.halves}*ratio <= capacity+1"] if keeps and "gate" in names else []
    outputs = tuple(specs[name] for name in written)
    inputs = tuple(specs[name] for name in names)
    return Contract(factory.__name__, sizes, _STATICS, inputs, outputs, probes, tuple(relations), written)


_WHERE = "state cache table slots offset"


def _contract_of(factory: Callable[..., Any], cfg: Config) -> Contract:
    """Return the contract of one of the kernels."""
    kept = ("state",) if cfg.keeps else ()
    if factory is kernels.compress_step:
        return _contract(cfg, factory, f"kv gate ape norm_weight rotation {_WHERE}", *kept, "cache")
    if factory is kernels.compress_step_pool:
        return _contract(cfg, factory, f"kv gate ape {_WHERE}", *kept, "pooled")
    if factory is kernels.compress_step_norm:
        return _contract(cfg, factory, f"kv pooled norm_weight rotation {_WHERE}", "cache")
    return _contract(cfg, factory, "kv gate state slots offset", "state")


def _proof(factory: Callable[..., Any], cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Proof:
    """Return the proof of one of the kernels."""
    given = {name: int(getattr(cfg, name)) for name in _STATICS}
    contract = _contract_of(factory, cfg)
    compare = compared(cfg, contract) if "L2" in layers else None
    return Proof("compressor", factory(cfg), contract, given, compare, PASS_CONFIGS, layers=layers, **more)


FLAGSHIPS = Config(), Config(128, overlap=False, capacity=136), Config(D=128)
LONGER = tuple(replace(cfg, keeps=False) for cfg in FLAGSHIPS)
"""The same in calls of more tokens."""
ROUNDED = Config(simulate_fp8=True)


def proofs() -> Iterator[Proof]:
    """Yield the shipped kernels and other shapes."""
    every = (kernel for cfg in (*FLAGSHIPS, *LONGER) for kernel in kernels.step_kernels(cfg))
    for factory, cfg in dict.fromkeys(every):
        yield _proof(factory, cfg)
    for factory, cfg in kernels.step_kernels(ROUNDED):
        yield _proof(factory, cfg, SAFE)
