"""Training on two ranks: FSDP2 and DDP, swapped before they wrap the model or after, padded or not."""

import socket

import pytest
import torch.multiprocessing as mp

pytest.importorskip("transformers")

from ranks import each


def test_two_ranks():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(each, args=(port,), nprocs=2)
