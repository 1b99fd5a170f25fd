"""What CSA and HCA share: the contracts of their kernels, over ranges of keys, and the kernel that combines the ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..kernels.build import PASS_CONFIGS
from ..kernels.online_softmax import Config, combine
from ..reference.attention import SINK
from ..reference.contract import Contract, Static, TensorSpec
from .suite import Proof

RANGES = Static(int, 1, 64)


def contract(whole: Contract, cfg: Config) -> Contract:
    """The contract of an operator's kernel: results of each range of keys, in fp32 where several are to be combined."""
    dtype = torch.bfloat16 if cfg.ranges == 1 else torch.float32
    outputs = TensorSpec("out", "B ranges S H D", (dtype,)), TensorSpec("lse", "B ranges S H", (torch.float32,))
    return replace(whole, op=f"{whole.op}_fwd", statics={**whole.statics, "ranges": RANGES}, outputs=outputs)


def combining(whole: Contract) -> Contract:
    """The contract of the kernel that combines the ranges."""
    inputs = (
        TensorSpec("outs", "B ranges S H D", (torch.float32,)),
        TensorSpec("lses", "B ranges S H", (torch.float32,)),
        SINK,
    )
    sizes = {name: whole.sizes[name] for name in "BS"}
    statics = {name: whole.statics[name] for name in "HD"} | {"ranges": RANGES}
    probes = tuple({name: probe[name] for name in "BS"} for probe in whole.probes)
    return Contract("combine", sizes, statics, inputs, whole.outputs, probes)


def statics(cfg: Config, *names: str) -> Mapping[str, float]:
    """The static parameters of a kernel, by name."""
    return {name: getattr(cfg, name) for name in (*names, "ranges")}


def combined(op: str, whole: Contract, cfg: Config, **more: Any) -> Iterator[Proof]:
    """The proof of the kernel that combines the ranges."""
    yield Proof(op, combine(cfg), combining(whole), statics(cfg, "H", "D"), None, PASS_CONFIGS, **more)
