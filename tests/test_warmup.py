"""What `lemmata warmup` builds is what the launchers ask for, on every call that DeepSeek-V4 makes."""

import contextlib
import os

import pytest
import torch

pytest.importorskip("tilelang")

from typer.testing import CliRunner

from lemmata import cli, warmup
from lemmata.bindings import swa
from lemmata.kernels import build, combine, csa, hca, indexer, topk

LENGTHS = [1, 100, 4096, 5000, 10_000, 20_000, 32_768, 40_000, 2**17, 2**18]  # 2^18 entries are 2^20 tokens


@pytest.fixture
def asked(monkeypatch):
    """The kernels that launchers ask for; they are not run."""
    pairs = set()
    for module in (indexer, topk, combine):
        monkeypatch.setattr(module, "build", lambda *pair: pairs.add(pair) or (lambda *tensors: None))
    build.forget()
    yield pairs
    build.forget()


def empty(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_every_kernel_is_listed_once():
    listed = list(warmup.kernels())
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("entries", LENGTHS)
@pytest.mark.parametrize("queries", [1, 4096])
def test_the_scores_are_built(asked, queries, entries):
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        q, k = empty(1, queries, 64, 128, dtype=dtype), empty(1, entries, 128, dtype=dtype)
        weights, offset = empty(1, queries, 64, dtype=torch.float32), empty(1, dtype=torch.int32)
        if dtype == torch.bfloat16:
            indexer.scores(q, k, weights, offset, 4)
        else:
            indexer.scores_fp8(q, k, weights, empty(1, entries, dtype=torch.float32), offset, 4)
    assert len(asked) == 2
    assert asked <= set(warmup.kernels())


@pytest.mark.parametrize("entries", LENGTHS)
@pytest.mark.parametrize("k", [512, 1024])
def test_the_selection_is_built(asked, k, entries):
    topk.select_pieces(empty(3, entries, dtype=torch.float32), empty(3, dtype=torch.int32), k, 4)
    assert asked
    assert asked <= set(warmup.kernels())


@pytest.mark.parametrize(("heads", "k"), [(64, 512), (128, 1024)])
@pytest.mark.parametrize("queries", [1, 4096, 5000])
def test_attention_is_built(asked, monkeypatch, queries, heads, k):
    bf16 = torch.bfloat16
    q, window_kv = empty(2, queries, heads, 512, dtype=bf16), empty(2, 127 + queries, 512, dtype=bf16)
    entries, sink = empty(2, 1000, 512, dtype=bf16), empty(heads, dtype=torch.float32)
    indices, offset = empty(2, queries, k, dtype=torch.int32), empty(2, dtype=torch.int32)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    for out, lse in (
        csa.csa(q, window_kv, entries, indices, sink, offset, 128, 512**-0.5),
        hca.hca(q, window_kv, entries, sink, offset, 128, 128, 512**-0.5),
        swa._launch(q, window_kv, sink, offset, 128, 512**-0.5),
    ):
        assert (out.shape, lse.shape) == (q.shape, q.shape[:3])
    assert len(asked) == (2 if queries > 1 else 4 + (heads == 64)), "swa has the prefill of hca"
    assert asked <= set(warmup.kernels())


def test_the_command_builds_them(monkeypatch):
    built, processes = [], []

    def in_this_process(jobs, count):
        processes.append(count)
        for job in jobs:
            job[0](*job[1:])
            yield job

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(build, "compiled", lambda *pair: built.append(pair))
    monkeypatch.setattr(warmup, "side_by_side", in_this_process)
    result = CliRunner().invoke(cli.app, ["warmup", "--jobs", "3"])
    assert result.exit_code == 0, result.output
    assert built == list(warmup.kernels())
    assert len(result.output.splitlines()) == len(built)
    CliRunner().invoke(cli.app, ["warmup"])
    assert processes == [3, warmup.cores()]


def test_jobs_are_done_in_other_processes(tmp_path):
    jobs = [(os.mkdir, str(tmp_path / name)) for name in "abc"]
    assert set(warmup.side_by_side(jobs, 2)) == set(jobs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    with pytest.raises(FileExistsError):
        list(warmup.side_by_side(jobs[:1], 2))
    assert list(warmup.side_by_side([], 2)) == []


def test_the_command_wants_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(cli.app, ["warmup"])
    assert result.exit_code == 2
    assert result.output == "lemmata warmup: expected a CUDA device or --export FOLDER, got neither\n"
