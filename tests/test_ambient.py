"""What a caller has switched on changes no bit of an operator, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from inputs import Call
from opspec import OpSpec
from specs import SPECS

Mode = Callable[[str], AbstractContextManager[Any]]


@contextmanager
def switched(get: Callable[[], Any], put: Callable[[Any], None], value: object) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


class Wrong(TorchFunctionMode):
    """Makes sums, comparisons and ranges of torch wrong, inside an operator too if it reached there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        wrong = getattr(func, "__name__", "") in ("sum", "where", "arange", "type_as")
        return out + 1 if wrong and isinstance(out, Tensor) and out.dtype is not torch.bool else out


class Seen(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def default_dtype(dtype: torch.dtype) -> Mode:
    return lambda _: switched(torch.get_default_dtype, torch.set_default_dtype, dtype)


def precision(_: str) -> AbstractContextManager[None]:
    return switched(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium")


def deterministic(_: str) -> AbstractContextManager[None]:
    return switched(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


MODES: dict[str, Mode] = {
    "autocast to fp16": lambda device: torch.autocast(device, torch.float16),
    "autocast to bf16": lambda device: torch.autocast(device, torch.bfloat16),
    "the other device's autocast": lambda device: torch.autocast("cpu" if device == "cuda" else "cuda", torch.float16),
    "default dtype fp64": default_dtype(torch.float64),
    "default dtype bf16": default_dtype(torch.bfloat16),
    "default device": lambda _: torch.device("meta"),
    "products in TF32 or bf16": precision,
    "deterministic algorithms": deterministic,
    "anomaly detection": lambda _: torch.autograd.detect_anomaly(check_nan=False),
    "a function mode": lambda _: Wrong(),
    "a dispatch mode": lambda _: Seen(),
    "counted FLOPs": lambda _: FlopCounterMode(display=False),
}
WITHOUT_GRADIENT: dict[str, Mode] = {
    "inference mode": lambda _: torch.inference_mode(),
    "no gradient": lambda _: torch.no_grad(),
}

every = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)


def sample(spec: OpSpec, device: torch.device) -> Call:
    """A call whose products are large enough for a library to choose its precision."""
    return spec.sample(**{name: 41 if name in ("S", "T") else size for name, size in spec.sizes.items()}).to(device)


def results(
    spec: OpSpec, call: Call, forward: AbstractContextManager[Any], backward: AbstractContextManager[Any]
) -> Any:
    """The result and the gradients, each found within its own mode."""
    call, leaves = spec.leaves(call)
    with forward:
        out = spec.direct(*call.tensors, *call.statics.values())
    out = out if isinstance(out, tuple) else (out,)
    if not leaves:
        return out
    derived = [o for o in out if o.requires_grad]  # an operator may return what only its backward is about
    with backward:
        return *out, *torch.autograd.grad(derived, leaves, [torch.ones_like(o) for o in derived])


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every
@pytest.mark.filterwarnings("ignore:.*Anomaly Detection", "ignore:.*CUDA is not available", "ignore:.*TF32|.*tf32")
def test_no_mode_changes_a_bit(spec: OpSpec, device: torch.device) -> None:
    call = sample(spec, device)
    wanted = results(spec, call, nullcontext(), nullcontext())
    for name, mode in MODES.items():
        got = results(spec, call, mode(device.type), mode(device.type))
        assert same(got, wanted), name
    for name, mode in WITHOUT_GRADIENT.items():
        with mode(device.type):
            got = spec.direct(*call.tensors, *call.statics.values())
        got = got if isinstance(got, tuple) else (got,)
        assert same(got, wanted[: len(got)]), name


@every
def test_a_public_function_under_autocast_is_the_same(spec: OpSpec, device: torch.device) -> None:
    call = sample(spec, device)
    wanted = spec.run(call)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(device.type, dtype):
            assert torch.equal(spec.run(call), wanted)


@every
def test_a_dispatch_mode_sees_the_operator_and_nothing_of_its_inside(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    with Seen() as seen:
        spec.direct(*call.tensors, *call.statics.values())
    copies = {"aten.clone.default"} if spec.updates else set()
    assert [name for name in seen.names if name not in copies] == [str(spec.overload)]


def test_precisions_are_given_back() -> None:
    spec = next(s for s in SPECS if s.name == "indexer_scores")
    call = spec.sample(2)
    with precision(""):
        before = [torch._C._get_fp32_precision_getter(*of) for of in (("cuda", "matmul"), ("mkldnn", "matmul"))]
        spec.run(call)
        after = [torch._C._get_fp32_precision_getter(*of) for of in (("cuda", "matmul"), ("mkldnn", "matmul"))]
        assert before == after == ["tf32", "bf16"]


@pytest.mark.parametrize("name", ["autocast to fp16", "autocast to bf16", "a function mode"])
def test_modes_do_reach_what_is_not_shielded(name: str) -> None:
    """The planted error: an implementation without the shield, compared in the same way."""
    spec = next(s for s in SPECS if s.name == "indexer_scores")
    call = sample(spec, torch.device("cpu"))
    wanted = spec.reference(*call.tensors, **call.statics)
    with MODES[name]("cpu"):
        got = spec.reference(*call.tensors, **call.statics)
    assert not same((got,), (wanted,))
