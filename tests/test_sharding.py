"""Operators on DTensors of two ranks: shards of the batch and of the heads, results and gradients; else one line."""

from __future__ import annotations

import socket

import torch.multiprocessing as mp

from shards import each


def test_shards_of_two_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(each, args=(port,), nprocs=2)  # type: ignore[no-untyped-call]
