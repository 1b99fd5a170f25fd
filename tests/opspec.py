"""One record per operator; the generic tests in test_ops.py and test_gpu.py run over all of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from inputs import EXACT, MAGNITUDES, VALUES, Call, make
from lemmata.reference.contract import Contract

Array = NDArray[np.float64]


def array(tensor: Tensor) -> Array:
    """The same numbers in fp64, for an oracle."""
    return tensor.detach().double().cpu().numpy()  # type: ignore[no-any-return]


def deviation(got: Tensor, want: Array, scale: Array | float = 1.0) -> float:
    """The largest difference, relative to the scale; infinite where only one is NaN or an infinity."""
    found = array(got)
    assert found.shape == want.shape
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.where(found == want, 0.0, np.abs(found - want) / scale)
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


@dataclass(frozen=True, eq=False, repr=False)
class OpSpec:
    """What the generic tests need to know of an operator.

    Attributes:
        name: names the tests.
        operator: the one in the registry whose kernels it runs.
        op: the public function, of the contract's tensors in their order.
        overload: the torch operator that a forward call dispatches, of the same tensors and statics.
        contract: its contract.
        sizes: for a sample that is drawn once.
        large: for one that fills a GPU.
        batch: the size along which results are independent, the first dimension of all tensors but parameters.
        configurations: static parameters, those that are dimensions included, in the order of the torch operator; few, as
            a kernel is built for each.
        reference: plain torch in the dtype of its input; its own error against the oracle sets the tolerance.
        oracle: the formula again, written independently, in fp64.
        wrong: the reference with an error planted, by name: every test of values must reject each.
        differentiable: the inputs that have a gradient, in the contract's order.
        oracle_bwd: the derivative of the oracle times grad_out, found without the closed form.
        scale, scale_bwd: what errors are measured against: the oracle on absolute values, where sums may cancel.
        plain: what the kernel's arithmetic is in plain torch, where that is not the reference.
        plain_bwd: the same of the kernel of the backward, whose derivative torch finds.
        exact: inputs are such that no sum is rounded, as results that are decisions must be equal.
        optional: arguments that may be None.
        edges: for some sizes, the values to draw from, where others would be but more work.
        updates: the inputs that the torch operator writes into; it returns nothing then, and ``op`` what has become of copies.
        compiled: the first size that torch.compile sees, no other dimension's, which it would take for the same.
    """

    name: str
    operator: str
    op: Callable[..., Tensor]
    overload: Callable[..., Tensor]
    contract: Contract
    sizes: dict[str, int]
    large: dict[str, int]
    batch: str
    configurations: tuple[dict[str, float], ...]
    reference: Callable[..., Tensor]
    oracle: Callable[..., Array]
    wrong: dict[str, Callable[..., Tensor]]
    differentiable: tuple[str, ...] = ()
    oracle_bwd: Callable[..., tuple[Array, ...]] | None = None
    scale: Callable[..., Array] | None = None
    scale_bwd: Callable[..., tuple[Array, ...]] | None = None
    plain: Callable[..., Tensor] | None = None
    plain_bwd: Callable[..., Tensor] | None = None
    exact: bool = False
    optional: tuple[str, ...] = ()
    edges: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    updates: tuple[str, ...] = ()
    compiled: int = 3

    def __repr__(self) -> str:
        return self.name

    @property
    def statics(self) -> st.SearchStrategy[dict[str, float]]:
        """Draws static parameters."""
        return st.sampled_from(self.configurations)

    def sample(
        self,
        count: int | None = None,
        magnitude: float | tuple[float, ...] = 1.0,
        seed: int = 0,
        at: int = 0,
        **sizes: int,
    ) -> Call:
        """A call with random inputs, ``count`` of them in the batch."""
        known = self.sizes | ({} if count is None else {self.batch: count}) | sizes
        return make(self.contract, self.configurations[at], known, seed, EXACT if self.exact else magnitude)

    @property
    def batched(self) -> dict[str, bool]:
        """Whether a tensor, by its name, begins with the batch."""
        return {t.name: self.batch == t.leading or (self.batch,) == t.dims[0] for t in self.contract.inputs}

    def part(self, call: Call, at: Tensor) -> Call:
        """The call on some of the batch."""
        tensors = zip(call.tensors, self.batched.values(), strict=True)
        return replace(call, tensors=tuple(t[at] if batched else t for t, batched in tensors))

    def run(self, call: Call) -> Tensor:
        """The public function's answer."""
        return self.op(*call.tensors, **call.statics)

    def in_place(self, call: Call) -> Call:
        """The call whose tensors that are written into are contiguous, as they have to be."""
        tensors = zip(self.contract.inputs, call.tensors, strict=True)
        return replace(call, tensors=tuple(t.contiguous() if s.name in self.updates else t for s, t in tensors))

    def direct(self, *arguments: Any) -> Any:
        """The torch operator's results; of one that writes into its arguments, what has become of copies of these."""
        if not self.updates:
            return self.overload(*arguments)
        names, given = [spec.name for spec in self.contract.inputs], list(arguments)
        for at in map(names.index, self.updates):
            given[at] = given[at].clone(memory_format=torch.contiguous_format)
        self.overload(*given)
        return tuple(given[names.index(name)] for name in self.updates)

    def leaves(self, call: Call) -> tuple[Call, list[Tensor]]:
        """The call on copies that require a gradient, and these."""
        wanted = [spec.name in self.differentiable for spec in self.contract.inputs]
        tensors = [t.detach().clone().requires_grad_(w) for t, w in zip(call.tensors, wanted, strict=True)]
        return Call(tuple(tensors), call.statics, call.dims), [t for t in tensors if t.requires_grad]

    def inputs_with_gradient(self, call: Call) -> list[Tensor]:
        """Those of the call's tensors that have a gradient."""
        named = dict(zip((spec.name for spec in self.contract.inputs), call.tensors, strict=True))
        return [named[name] for name in self.differentiable]

    def on(self, leaves: Iterable[Tensor], call: Call) -> Call:
        """The call with other inputs in the place of those that have a gradient."""
        names = [spec.name for spec in self.contract.inputs]
        new = dict(zip(names, call.tensors, strict=True)) | dict(zip(self.differentiable, leaves, strict=True))
        return replace(call, tensors=tuple(new[name] for name in names))

    def grads(self, op: Callable[..., Tensor], call: Call, grad_out: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The result of ``op`` and the gradients."""
        call, leaves = self.leaves(call)
        out = op(*call.tensors, **call.statics)
        return out.detach(), list(torch.autograd.grad(out, leaves, grad_out)) if leaves else []

    def error(self, call: Call, got: Tensor) -> float:
        """The largest deviation from the oracle."""
        arrays = [array(t) for t in call.tensors]
        scale = self.scale(*arrays, **call.statics) if self.scale else 1.0
        return deviation(got, self.oracle(*arrays, **call.statics), scale)

    def error_bwd(self, call: Call, grad_out: Tensor, grads: list[Tensor]) -> float:
        """The largest deviation of gradients from the oracle's."""
        return self.errors_bwd(call, grad_out)(grads)

    def errors_bwd(self, call: Call, grad_out: Tensor) -> Callable[[list[Tensor]], float]:
        """The same of any gradients of one call; the oracle is asked once."""
        assert self.oracle_bwd is not None
        arrays = [array(t) for t in (grad_out, *call.tensors)]
        wanted = self.oracle_bwd(*arrays, **call.statics)
        scales = self.scale_bwd(*arrays, **call.statics) if self.scale_bwd else (1.0,) * len(wanted)
        return lambda grads: max(deviation(*three) for three in zip(grads, wanted, scales, strict=True))

    @functools.cache  # noqa: B019  specs live as long as the tests
    def tolerance(self, device: str, at: int = 0) -> tuple[float, float]:
        """Twice plain torch's own largest error, forward and backward, over all values that are drawn."""
        forward = backward = 0.0
        for magnitude in (VALUES, *MAGNITUDES):
            call = self.sample(max(16, self.sizes[self.batch]), magnitude, seed=7, at=at).to(device)
            out = (self.plain or self.reference)(*call.tensors, **call.statics)
            forward = max(forward, self.error(call, out))
            if self.differentiable and magnitude is not VALUES:  # at the kink of a relu, the gradient is nobody's
                g = torch.randn(out.shape, generator=torch.Generator().manual_seed(8)).to(device)
                yardsticks = [self.reference] + ([self.plain_bwd] if self.plain_bwd and call.tensors[0].is_cuda else [])
                errors = [self.error_bwd(call, g, self.grads(f, call, g)[1]) for f in yardsticks]
                backward = max(backward, *errors)
        assert math.isfinite(forward + backward), "plain torch is wrong somewhere, and anything would pass"
        return 2 * forward, 2 * backward

    def tolerance_of(self, call: Call) -> float:
        """The tolerance of the forward at the configuration of a call; or on its very inputs, if tensor cores lose more."""
        at = self.configurations.index({**call.dims, **call.statics})
        tolerance = self.tolerance(str(call.tensors[0].device), at)[0]
        if self.plain and call.tensors[0].is_cuda:
            tolerance = max(tolerance, 2 * self.error(call, self.plain(*call.tensors, **call.statics)))
        assert math.isfinite(tolerance), "plain torch is wrong somewhere, and anything would pass"
        return tolerance

    def tolerance_bwd_of(self, call: Call, grad_out: Tensor) -> float:
        """The tolerance of the backward, likewise."""
        at = self.configurations.index({**call.dims, **call.statics})
        tolerance = self.tolerance(str(grad_out.device), at)[1]
        if self.plain_bwd and grad_out.is_cuda:
            plain = self.grads(self.plain_bwd, call, grad_out)[1]
            tolerance = max(tolerance, 2 * self.error_bwd(call, grad_out, plain))
        assert math.isfinite(tolerance), "plain torch is wrong somewhere, and anything would pass"
        return tolerance
