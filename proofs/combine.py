"""What is claimed of the kernel that adds up splits of the keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..kernels.build import PASS_CONFIGS
from ..kernels.combine import combine
from ..kernels.sparse_attention_config import Config
from ..reference.attention import SINK
from ..reference.contract import Contract, TensorSpec
from . import attention
from .engine.execution.symbolic import execute
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.extended import Value
from .engine.forms.normal_form import Form
from .engine.reference.symbolic_torch import tensor
from .engine.verify import Compare, Compared
from .suite import Proof


def combining(whole: Contract) -> Contract:
    """Return the contract of the kernel that combines the splits."""
    inputs = (
        TensorSpec("accs", "B splits S H D", (torch.float32,)),
        TensorSpec("stats", "B splits 2 S H", (torch.float32,)),
        SINK,
    )
    sizes = {name: whole.sizes[name] for name in "BS"}
    statics = {name: whole.statics[name] for name in "HD"} | {"splits": attention.SPLITS}
    probes = tuple({name: probe[name] for name in "BS"} for probe in whole.probes)
    return Contract("combine", sizes, statics, inputs, whole.outputs, probes)


def combined(op: str, whole: Contract, cfg: Config, **more: Any) -> Proof:
    """Return the proof of the kernel that combines the splits."""
    given = attention.statics(cfg, "H", "D")
    more = {"waivers": (attention.sink_alone("sink["),), **more}
    return Proof(op, combine(cfg), combining(whole), given, _combining(cfg, whole), PASS_CONFIGS, **more)


def added(accs: Any, stats: Any, sink: Any) -> tuple[Any, Any]:
    """Return ``out`` and ``lse`` of all keys from what the kernels of splits write, over the reals.

    With V = Σ_g exp(row_max_g) acc_g and M = Σ_g exp(row_max_g) row_sum_g: out = V / (M + exp(sink)), lse = log M.
    """
    weight, row_sum = stats[:, :, 0].exp(), stats[:, :, 1]
    mass = (weight * row_sum).sum(1)
    some = mass > 0
    out = (weight.unsqueeze(-1) * accs).sum(1) / (mass + sink.exp()).unsqueeze(-1)
    return torch.where(some.unsqueeze(-1), out, 0.0), torch.where(some, mass.log(), math.inf)


def _combining(cfg: Config, whole: Contract) -> Compare:
    """Return the kernel that combines splits, against ``added``."""

    def compared(kernel: Any, known: Facts) -> Compared:
        done = execute(kernel, facts=known)
        inputs = attention.inputs(cfg, combining(whole))
        counted = sums.counted()

        def wanted(result: Any) -> Callable[..., Value]:
            def element(*index: Form) -> Value:
                value = tensor(result).value(*index)
                return Value(counted(value.form), counted(value.finite), value.sign)

            return element

        results = added(*inputs.values())
        pairs = zip(("out", "lse"), results, strict=True)
        return done, [e for name, result in pairs for e in done.compare(name, wanted(result), counted)]

    return compared
