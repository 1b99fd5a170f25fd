"""Compile kernels and launch them."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import tilelang
import tilelang.language as T
import torch

from .announce import announced

Config = TypeVar("Config", bound=Hashable)
Plan = TypeVar("Plan")
_log = logging.getLogger("lemmata")
_plans: list[Any] = []

# The proofs show that no access is out of bounds without the compiler's guards, so the kernels ship without them.
PASS_CONFIGS = {
    "tl.disable_safe_memory_legalize": True,
    "tl.disable_warp_specialized": True,
}

Launch = Callable[..., None]
"""A compiled kernel: it takes its tensors, results last, and returns once it is launched."""


def compiled(factory: Callable[[Config], T.PrimFunc], config: Config) -> tilelang.JITKernel:
    """Compile a kernel for the current GPU, or load it where TileLang has it on disk."""
    begin = time.perf_counter()
    with announced(f"{factory.__name__} {config}"):
        kernel = tilelang.compile(
            factory(config), target="cuda", execution_backend="tvm_ffi", pass_configs=PASS_CONFIGS
        )
    _log.info("built %s %s in %.1f s", factory.__name__, config, time.perf_counter() - begin)
    return kernel


@functools.cache
def build(factory: Callable[[Config], T.PrimFunc], config: Config) -> Launch:
    """Return the kernel for the current GPU, compiled once for each process and config, with a warning if that takes long."""
    with announced(f"{factory.__name__} {config}"):
        return entry(compiled(factory, config))


def entry(kernel: tilelang.JITKernel) -> Launch:
    """Return the function that TVM made of a kernel. It checks its arguments itself, so that nothing need come before it."""
    executable = kernel.adapter.get_exportable_executable()
    return (executable.jit() if hasattr(executable, "jit") else executable).get_function("main")


def planned(function: Callable[..., Plan]) -> Callable[..., Plan]:
    """Keep what a function of numbers returns: what a call launches is worked out once for each of its sizes."""
    kept = functools.lru_cache(maxsize=4096)(function)
    _plans.append(kept)
    return kept


def forget() -> None:
    """Forget the kernels that were built and what calls launch."""
    for kept in (build, *_plans):
        kept.cache_clear()


def row_loop(n: int):
    """Return the loop over a row of n fp32 numbers in global memory, with accesses of 8 or 16 bytes if n allows them."""
    return T.vectorized(n) if n in (2, 4, 8) else T.unroll(n)


def launch(kernel: Launch, *inputs):
    """Run a kernel on matrices [..., n, n] of one shape; return matrices of that shape."""
    inputs = [aligned(x) for x in inputs]
    out = torch.empty_like(inputs[0])
    if out.numel():
        tensors = [*inputs, out]
        kernel(*(tensors if out.ndim == 3 else [x.view(-1, *out.shape[-2:]) for x in tensors]))
    return out


def aligned(tensor):
    """Return the tensor, contiguous and beginning at a multiple of 16 bytes, as the widest loads need it."""
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
