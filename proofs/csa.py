"""What is claimed of the kernels of compressed sparse attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.csa import csa_fwd
from ..kernels.online_softmax import Config
from ..reference.csa import CSA
from . import attention
from .suite import Proof


def _proof(cfg: Config, **more: Any) -> Proof:
    statics = attention.statics(cfg, "H", "D", "window", "scale")
    return Proof("csa", csa_fwd(cfg), attention.contract(CSA, cfg), statics, None, PASS_CONFIGS, **more)


def proofs() -> Iterator[Proof]:
    """All keys in one range, and in five that another kernel combines."""
    yield _proof(Config())
    yield _proof(Config(ranges=5))
    yield from attention.combined("csa", CSA, Config(ranges=5))
