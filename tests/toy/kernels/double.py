"""Twice a vector (formula: reference/double.py)."""

from dataclasses import dataclass

import tilelang.language as T

from .build import aligned, build


@dataclass(frozen=True)
class Config:
    """Static parameters."""

    threads: int = 128


def double_fwd(cfg: Config) -> T.PrimFunc:
    """x [N] -> out [N]."""
    N = T.dynamic("N")

    @T.prim_func
    def double_fwd(x: T.Tensor((N,), "float32"), out: T.Tensor((N,), "float32")):
        with T.Kernel(T.ceildiv(N, cfg.threads), threads=cfg.threads) as block:
            for i in T.Parallel(cfg.threads):
                if block * cfg.threads + i < N:
                    out[block * cfg.threads + i] = 2 * x[block * cfg.threads + i]

    return double_fwd


def double(x):
    """Launch ``double_fwd`` on a CUDA tensor."""
    out = x.new_empty(x.shape)
    build(double_fwd, Config())(aligned(x), out)
    return out
