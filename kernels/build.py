"""Compile kernels and launch them."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

import tilelang
import tilelang.language as T

Config = TypeVar("Config", bound=Hashable)
_log = logging.getLogger("lemmata")

# The proofs show that no access is out of bounds without the compiler's guards, so the kernels ship without them.
PASS_CONFIGS = {
    "tl.disable_safe_memory_legalize": True,
    "tl.disable_warp_specialized": True,
}


@functools.cache
def build(factory: Callable[[Config], T.PrimFunc], config: Config) -> tilelang.JITKernel:
    """Compile a kernel for the current GPU, once for each process and config; TileLang keeps it on disk."""
    begin = time.perf_counter()
    kernel = tilelang.compile(factory(config), target="cuda", execution_backend="tvm_ffi", pass_configs=PASS_CONFIGS)
    _log.info("built %s %s in %.1f s", factory.__name__, config, time.perf_counter() - begin)
    return kernel


def row_loop(n: int):
    """Return the loop over a row of n fp32 numbers in global memory, with accesses of 8 or 16 bytes if n allows them."""
    return T.vectorized(n) if n in (2, 4, 8) else T.unroll(n)


def launch(factory: Callable[[Config], T.PrimFunc], config: Config, *inputs):
    """Run a kernel on matrices [..., n, n] of one shape; return matrices of that shape."""
    shape = inputs[0].shape
    out = inputs[0].new_empty(shape)
    if out.numel():
        kernel = build(factory, config)
        kernel(*(aligned(x).view(-1, *shape[-2:]) for x in inputs), out.view(-1, *shape[-2:]))
    return out


def aligned(tensor):
    """Return the tensor, contiguous and beginning at a multiple of 16 bytes, as the widest loads need it."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
