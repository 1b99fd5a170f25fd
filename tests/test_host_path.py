"""What lies between a caller and a launch: one dispatch, allocations and views, and no arithmetic that torch would launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lemmata
from lemmata.bench.host import calls, without_launches
from lemmata.bindings import indexer_ops
from lemmata.bindings.derivative import _next_key
from lemmata.reference.indexer import visible

WITHOUT_A_LAUNCH = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "view",
    "unsqueeze",
    "as_strided",
    "reshape",
    "_reshape_alias",
}
FILLED = {"new_full": 1, "fill_": 1}
LAUNCHES = {  # beside those of kernels, by operators of torch: what only kernels could spare
    "csa, offset a number": FILLED,
    "indexer_topk, fp8, offset a number": FILLED,
}


@pytest.fixture(autouse=True)
def _stubs() -> Iterator[None]:
    with without_launches():
        yield


def seen(call: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """How often operators of lemmata are called, and those of torch that launch something."""
    call()  # builds
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    names = [event.name.split("::") for event in profile.events() if "::" in event.name]
    ours = Counter(name for library, name in names if library == "lemmata")
    return ours, Counter(name for library, name in names if library == "aten" and name not in WITHOUT_A_LAUNCH)


@pytest.mark.parametrize("name", calls())
def test_a_call_is_one_dispatch_and_its_kernels(name: str) -> None:
    ours, launches = seen(calls()[name])
    assert sum(ours.values()) == 1
    assert launches == LAUNCHES.get(name, {})


@pytest.mark.parametrize("name", calls(recorded=True))
def test_autograd_adds_no_dispatch(name: str) -> None:
    call = calls(recorded=True)[name]
    ours, launches = seen(call)
    assert sum(ours.values()) == 1
    assert launches == LAUNCHES.get(name, {})
    results = call()
    assert all(r.requires_grad for r in (results if isinstance(results, tuple) else (results,)))


def test_arithmetic_on_the_host_path_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted error: how many entries a query sees, as the reference counts them."""
    right = indexer_ops._best
    monkeypatch.setattr(indexer_ops, "_best", lambda x, at, *more: right(x, visible(at, 1, 4).int() * 4 - 1, *more))
    _, launches = seen(calls()["indexer_topk, fp8"])
    assert launches.total() > 2


def test_what_a_call_launches_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lemmata.kernels import csa

    chosen: list[int] = []
    right = csa.choose
    monkeypatch.setattr(csa, "choose", lambda queries, *sizes: (chosen.append(queries), right(queries, *sizes))[1])
    for _ in range(3):
        calls()["csa"]()
    assert chosen == [1]


def test_a_mode_is_not_passed_by() -> None:
    """What stands between autograd and the implementation is asked, as a dispatch mode here, which gives another result."""

    class Seven(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
            assert func is torch.ops.lemmata.sinkhorn_fwd.default
            return seven

    x, seven = torch.zeros(1, 4, 4), torch.full((1, 4, 4), 7.0)
    with Seven():
        assert lemmata.sinkhorn(x) is seven


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_next_key_is_torch_s(device: str) -> None:
    """For a view whose bit of negation is set, what negates it comes before the device's key."""
    x = torch.zeros(2, device=device)
    assert _next_key(torch._C._dispatch_keys(x).raw_repr()).name in ("ADInplaceOrView", "CPU", "Meta")
    negative = torch._neg_view(x)
    key = torch._C.DispatchKey.ADInplaceOrView
    assert _next_key(torch._C._dispatch_keys(negative).remove(key).raw_repr()).name == "Negative"
