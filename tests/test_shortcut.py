"""An operator is called without torch's dispatcher where that adds nothing, and through it wherever something looks on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lemmata
from lemmata.bindings.registry import IMPLEMENTATIONS
from lemmata.bindings.shortcut import shortened

DISPATCHED, AT_ONCE = "dispatched", "at once"
Seen = Callable[..., Any]


class Subclass(Tensor):
    """A tensor of another type."""


class Passing(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Overriding(TorchFunctionMode):
    """A mode of functions that changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def way(*args: Any) -> str:
    """Return which way a call of an operator on the CPU takes."""
    both: dict[DispatchKey, Seen] = {key: lambda *_: AT_ONCE for key in (DispatchKey.CPU, DispatchKey.CUDA)}
    found: str = shortened(lambda *_: DISPATCHED, both)(*args)  # type: ignore[arg-type]
    return found


def plain() -> Tensor:
    return torch.zeros(2)


def in_vmap() -> str:
    seen: list[str] = []
    torch.vmap(lambda x: (seen.append(way(x)), x)[1])(torch.zeros(2, 2))
    return seen[0]


def traced() -> str:
    seen: list[str] = []
    torch.jit.trace(lambda x: (seen.append(way(x)), x + 1)[1], (plain(),), check_trace=False)  # type: ignore[no-untyped-call]
    return seen[0]


def at_a_level_of_forward_mode() -> str:
    with forward_ad.dual_level():  # type: ignore[no-untyped-call]
        return way(plain())


@pytest.mark.parametrize("within", [nullcontext, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_nothing_looks(within: Callable[[], AbstractContextManager[Any]]) -> None:
    with within():
        assert way(plain(), None, torch.nn.Parameter(plain(), requires_grad=False), 4) == AT_ONCE


def test_a_gradient_that_nobody_records() -> None:
    with torch.no_grad():
        assert way(plain().requires_grad_()) == AT_ONCE


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(lambda: way(plain(), plain().requires_grad_()), id="a gradient"),
        pytest.param(lambda: way(plain(), Subclass(plain())), id="a subclass"),  # type: ignore[no-untyped-call]
        pytest.param(lambda: way(torch._neg_view(plain())), id="the bit of negation"),
        pytest.param(lambda: way(torch.zeros(2, device="meta")), id="another device"),
        pytest.param(in_vmap, id="vmap"),
        pytest.param(traced, id="a tracer"),
        pytest.param(at_a_level_of_forward_mode, id="forward mode"),
    ],
)
def test_something_has_a_say(found: Callable[[], str]) -> None:
    assert found() == DISPATCHED


@pytest.mark.parametrize("within", [Passing, Overriding, lambda: torch.profiler.profile(), lambda: torch.device("cpu")])
def test_something_looks(within: Callable[[], AbstractContextManager[Any]]) -> None:
    with within():
        assert way(plain()) == DISPATCHED
    assert way(plain()) == AT_ONCE


def test_both_ways_lead_to_one_result() -> None:
    logits = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack:
        at_once = lemmata.sinkhorn(logits)
        stack.enter_context(Passing())
        assert torch.equal(lemmata.sinkhorn(logits), at_once)


def test_a_public_call_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is the implementation that is registered, without the dispatcher's operator."""
    seven = torch.full((4, 4), 7.0)
    monkeypatch.setitem(IMPLEMENTATIONS["sinkhorn_fwd"], DispatchKey.CPU, lambda *_: seven)
    assert lemmata.sinkhorn(torch.zeros(4, 4)) is seven
