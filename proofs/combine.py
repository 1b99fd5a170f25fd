"""What is claimed of the kernel that combines the results of ranges of keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..kernels.attention_config import Config
from ..kernels.build import PASS_CONFIGS
from ..kernels.combine import combine
from ..reference.attention import SINK
from ..reference.contract import Contract, TensorSpec
from . import attention
from .engine import sums
from .engine.entailment import Facts
from .engine.extended import Value
from .engine.normal_form import Form
from .engine.symbolic import execute
from .engine.symbolic_torch import tensor
from .engine.verify import Compare, Compared
from .suite import Proof


def combining(whole: Contract) -> Contract:
    """The contract of the kernel that combines the ranges."""
    inputs = (
        TensorSpec("outs", "B ranges S H D", (torch.float32,)),
        TensorSpec("lses", "B ranges S H", (torch.float32,)),
        SINK,
    )
    sizes = {name: whole.sizes[name] for name in "BS"}
    statics = {name: whole.statics[name] for name in "HD"} | {"ranges": attention.RANGES}
    probes = tuple({name: probe[name] for name in "BS"} for probe in whole.probes)
    return Contract("combine", sizes, statics, inputs, whole.outputs, probes)


def combined(op: str, whole: Contract, cfg: Config, **more: Any) -> Proof:
    """The proof of the kernel that combines the ranges."""
    given = attention.statics(cfg, "H", "D")
    more = {"waivers": (attention.SINK_ALONE,), **more}
    return Proof(op, combine(cfg), combining(whole), given, _combining(cfg, whole), PASS_CONFIGS, **more)


def weighed(outs: Any, lses: Any, sink: Any) -> tuple[Any, Any]:
    """``out`` and ``lse`` of all keys from those of the ranges, over the reals.

    With m_g = exp(lse_g), 0 where range g is empty: out = Σ m_g out_g / (Σ m_g + exp(sink)), lse = log Σ m_g.
    """
    mass = torch.where(lses < math.inf, lses, -math.inf).exp()
    total = mass.sum(1)
    some = total > 0
    out = (mass.unsqueeze(-1) * outs).sum(1) / (total + sink.exp()).unsqueeze(-1)
    return torch.where(some.unsqueeze(-1), out, 0.0), torch.where(some, total.log(), math.inf)


def _combining(cfg: Config, whole: Contract) -> Compare:
    """The kernel that combines ranges, against ``weighed``."""

    def compared(kernel: Any, known: Facts) -> Compared:
        done = execute(kernel, facts=known, infinite=("lses",))
        inputs = attention.inputs(cfg, combining(whole), infinite=("lses",))
        counted = sums.counted()

        def wanted(result: Any) -> Callable[..., Value]:
            def element(*index: Form) -> Value:
                value = tensor(result).value(*index)
                return Value(counted(value.form), counted(value.finite), value.sign)

            return element

        results = weighed(*inputs.values())
        pairs = zip(("out", "lse"), results, strict=True)
        return done, [e for name, result in pairs for e in done.compare(name, wanted(result), counted)]

    return compared
