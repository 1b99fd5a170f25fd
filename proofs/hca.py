"""What is claimed of the kernels of heavily compressed attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.hca import hca_fwd
from ..kernels.online_softmax import Config
from ..reference.hca import HCA
from . import attention
from .suite import Proof


def _proof(cfg: Config, **more: Any) -> Proof:
    statics = attention.statics(cfg, "H", "D", "window", "scale", "ratio")
    return Proof("hca", hca_fwd(cfg), attention.contract(HCA, cfg), statics, None, PASS_CONFIGS, **more)


def proofs() -> Iterator[Proof]:
    """All keys in one range, and in five that ``combine`` weighs, which is proved with CSA."""
    yield _proof(Config())
    yield _proof(Config(ranges=5))
