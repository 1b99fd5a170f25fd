"""AutoModel's DeepSeek-V4 on two ranks: FSDP2 before the swap or after, and context parallelism against one rank."""

import socket

import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("nemo_automodel", reason="needs NeMo AutoModel: make test-automodel")

from automodel_ranks import each, each_gpu


def spawned(work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port,), nprocs=2)


def test_two_ranks():
    spawned(each)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus():
    spawned(each_gpu)
