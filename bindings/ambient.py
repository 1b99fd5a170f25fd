"""What a caller has switched on does not reach inside an operator: an implementation runs as if nothing were."""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import _C

_HIDDEN = functools.reduce(
    operator.or_,
    (
        _C.DispatchKeySet(getattr(_C.DispatchKey, key))
        for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "AutocastCPU", "AutocastCUDA")
    ),
)
_WHOLE = ("none", "ieee")  # precisions of products in fp32 that are fp32's own
_PRODUCTS = ("cuda", "matmul"), ("mkldnn", "matmul")
_precision = _C._get_fp32_precision_getter


def shielded(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Return the implementation below autograd, without autocast, function modes and products of less than fp32.

    Dispatch modes see the operator and nothing of what it calls, by torch's own rule. The default dtype and the default
    device are not changed here, as the first belongs to all threads: implementations name their dtypes and devices.
    """

    @functools.wraps(implementation)
    def call(*args: Any) -> Any:
        with _C._ExcludeDispatchKeyGuard(_HIDDEN), _C.DisableTorchFunction():
            if not _running and _precision("cuda", "matmul") in _WHOLE and _precision("mkldnn", "matmul") in _WHOLE:
                return implementation(*args)
            with _products_in_fp32():
                return implementation(*args)

    return untraced(call)


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, marked so that torch.compile never compiles it, nor what it calls.

    Where a caller's frame cannot be compiled whole, torch compiles what is called in it, the inside of operators too.
    """
    frames = _C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function


_lock = threading.Lock()
_running = 0
_asked: list[str] = []  # the precisions that the process had before the first of the running


@contextmanager
def _products_in_fp32() -> Iterator[None]:
    """Keep TF32 and bf16 out of products in fp32. The setting is the process's: the last to leave gives it back."""
    global _running
    with _lock:
        if not _running:
            _asked[:] = [_precision(*of) for of in _PRODUCTS]
            _set(["ieee" for _ in _PRODUCTS])
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                _set(_asked)


def _set(precisions: list[str]) -> None:
    for of, now in zip(_PRODUCTS, precisions, strict=True):
        _C._set_fp32_precision_setter(*of, now)
