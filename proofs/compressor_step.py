"""What is claimed of the kernels of compressor steps.

No two sequences of a call have one slot, nor two elements of the table one page: that is the contract's. So no block writes
what another one reads or writes. Of the kernels that keep rows beside entries it is claimed of calls that are short enough, of
the others of any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..kernels import compressor_step as kernels
from ..kernels.build import PASS_CONFIGS
from ..kernels.compressor_step import Config
from ..reference import compressor_step as reference
from ..reference.compressor import BF16
from ..reference.contract import Contract, Size, Static, TensorSpec
from .suite import Proof

SAFE = ("L0", "L1")
SIZES = {name: Size(1, size.high) for name, size in reference.SIZES.items()} | {"T": Size(1, 2**30 - 1)}
"""What holds of a call that launches a kernel: there is something of everything."""
_STATICS = {name: static for name, static in reference.STATICS.items() if name != "eps"}
_STATICS |= {name: Static(int, 0, 1) for name in ("overlap", "keeps")}
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


def _claims(cfg: Config) -> dict[Any, Contract]:
    """Return the contract of each kernel."""
    kept = ("state",) if cfg.keeps else ()
    return {
        kernels.compress_step: _contract(
            cfg, kernels.compress_step, f"kv gate ape norm_weight rotation {_WHERE}", *kept, "cache"
        ),
        kernels.compress_step_pool: _contract(
            cfg, kernels.compress_step_pool, f"kv gate ape {_WHERE}", *kept, "pooled"
        ),
        kernels.compress_step_norm: _contract(
            cfg, kernels.compress_step_norm, f"kv pooled norm_weight rotation {_WHERE}", "cache"
        ),
        kernels.compress_keep: _contract(cfg, kernels.compress_keep, "kv gate state slots offset", "state"),
    }


def _kernels(cfg: Config, layers: tuple[str, ...], **more: Any) -> Iterator[Proof]:
    """Yield the kernels of a call."""
    names = "ratio", "D", "overlap", "pairs", "capacity", "keeps"
    claims = _claims(cfg)
    for factory, each in kernels.step_kernels(cfg):
        given = {name: int(getattr(each, name)) for name in names}
        yield Proof("compressor", factory(each), claims[factory], given, None, PASS_CONFIGS, layers=layers, **more)


FLAGSHIPS = Config(), Config(128, overlap=False, capacity=136), Config(D=128)


def proofs() -> Iterator[Proof]:
    """Yield the shipped kernels and other shapes."""
    for cfg in FLAGSHIPS:
        yield from _kernels(cfg, SAFE)
