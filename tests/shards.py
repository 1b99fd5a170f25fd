"""What each of two ranks does with the operators on DTensors; a process of its own imports it by this name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

import lemmata
from inputs import Call
from opspec import OpSpec
from packed_cases import case
from specs import SPECS

OF_HEADS = {"q": 2, "sink": 0}


def sample(spec: OpSpec) -> Call:
    """A call with two shards of the heads, where there are any."""
    return spec.sample(4, at=1 if any(t.name == "sink" for t in spec.contract.inputs) else 0)


@contextmanager
def ranks(rank: int, port: int) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


def placements(spec: OpSpec) -> dict[str, list[Placement]]:
    """For each way of sharding, where the inputs are."""
    names = [t.name for t in spec.contract.inputs]
    ways = {
        "replicated": [Replicate() for _ in names],
        "batch": [Shard(0) if spec.batched[name] else Replicate() for name in names],
    }
    if "sink" in names:
        ways["heads"] = [Shard(OF_HEADS[name]) if name in OF_HEADS else Replicate() for name in names]
    return ways


def part(tensor: Tensor, mesh: DeviceMesh, at: Placement) -> DTensor:
    """This rank's part; gloo sends no fp8, so that distribute_tensor cannot."""
    local = tensor.chunk(2, at.dim)[dist.get_rank()].contiguous() if isinstance(at, Shard) else tensor
    return DTensor.from_local(local, mesh, [at], run_check=False)


def close(got: Tensor, want: Tensor) -> bool:
    """Sums over shards that were rounded to bf16 once each."""
    return bool((got.float() - want.float()).abs().max() <= 2**-7 * want.float().abs().max())


def run(spec: OpSpec, mesh: DeviceMesh) -> None:
    call = sample(spec)
    statics = call.statics.values()
    local, leaves = spec.leaves(call)
    wanted = spec.direct(*local.tensors, *statics)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    derived = [w for w in wanted if w.requires_grad]  # not what is kept for the backward alone
    grads = torch.autograd.grad(derived, leaves, [torch.ones_like(w) for w in derived]) if leaves else ()
    for way, where in placements(spec).items():
        given = [part(t, mesh, at) for t, at in zip(call.tensors, where, strict=True)]
        for tensor, requires in zip(given, (t.requires_grad for t in local.tensors), strict=True):
            tensor.requires_grad_(requires)
        got = spec.direct(*given, *statics)
        got = got if isinstance(got, tuple) else (got,)
        sharded = way != "replicated"
        assert all(isinstance(t, DTensor) and t.placements[0].is_shard() == sharded for t in got), (spec, way)
        assert all(torch.equal(t.full_tensor(), w) for t, w in zip(got, wanted, strict=True)), (spec, way)
        if leaves:
            of = [t for t in given if t.requires_grad]
            derived = [t for t in got if t.requires_grad]
            ours = torch.autograd.grad(derived, of, [torch.ones_like(t) for t in derived])
            assert all(close(g.full_tensor(), w) for g, w in zip(ours, grads, strict=True)), (spec, way)


def documents(spec: OpSpec, mesh: DeviceMesh) -> None:
    """Packed documents: shards of the heads stay, those of tokens are put together first."""
    of_heads = spec.operator in ("csa", "hca", "swa")
    local = case(spec, ((10, 2), (0, 0), (3, 1), (7, 3)), at=int(of_heads))
    wanted, given = local(), local.random_like_results()
    grads = local.gradients(given)
    ways: list[dict[str, Placement]] = [{"q": Shard(0)}, *([{"q": Shard(1), "sink": Shard(0)}] if of_heads else [])]
    for way in ways:
        there = {n: part(t, mesh, way.get(n, Replicate())) for n, t in local.tensors.items()}
        leaves = [there[n].requires_grad_() for n in grads]
        got = local(**there)
        assert all(isinstance(t, DTensor) and t.placements[0].is_shard() == ("sink" in way) for t in got), (spec, way)
        assert all(torch.equal(t.full_tensor(), w) for t, w in zip(got, wanted, strict=True)), (spec, way)  # type: ignore[attr-defined]
        ours = torch.autograd.grad(got, leaves, [part(g, mesh, Replicate()) for g in given])
        assert all(close(g.full_tensor(), w) for g, w in zip(ours, grads.values(), strict=True)), (spec, way)  # type: ignore[attr-defined]


def keys_elsewhere(spec: OpSpec, mesh: DeviceMesh) -> None:
    """The backward for a shard of the keys, on shards of the heads."""
    call = sample(spec)
    x = dict(zip((t.name for t in spec.contract.inputs), call.tensors, strict=True))
    out, lse = getattr(lemmata, spec.name)(**x, **call.statics)
    x |= {"grad_out": out, "grad_lse": lse.clamp(max=9), "lse": lse, "delta": out.float().square().sum(-1)}
    of_heads = {"q": 2, "grad_out": 2, "grad_lse": 2, "lse": 2, "delta": 2, "sink": 0}
    there = {n: part(t, mesh, Shard(of_heads[n]) if n in of_heads else Replicate()) for n, t in x.items()}
    shard_bwd = getattr(lemmata, f"{spec.name}_shard_bwd")
    wanted = shard_bwd(**x, **call.statics, kv_dtype=torch.float32)
    got = shard_bwd(**there, **call.statics, kv_dtype=torch.float32)
    assert got[0].placements[0].is_shard(2)
    assert all(close(g.full_tensor(), w) for g, w in zip(got, wanted, strict=True)), spec


def mixed(mesh: DeviceMesh) -> None:
    logits, scores = torch.randn(2, 4, 4), distribute_tensor(torch.randn(4, 9), mesh, [Shard(0)])
    with pytest.raises(
        TypeError, match=r"^topk.*: expected DTensors only, got a Tensor beside them: .*distribute_tensor"
    ):
        lemmata.topk(scores, k=2, lengths=torch.full((4,), 9, dtype=torch.int32))
    assert torch.equal(lemmata.topk(scores, k=2).full_tensor(), lemmata.topk(scores.full_tensor(), k=2))  # type: ignore[attr-defined]
    within = distribute_tensor(logits, mesh, [Shard(2)])  # a matrix is not split: it is put together first
    assert torch.equal(lemmata.sinkhorn(within).full_tensor(), lemmata.sinkhorn(logits))  # type: ignore[attr-defined]
    with torch.inference_mode():
        whole = distribute_tensor(logits, mesh, [Replicate()])
        assert torch.equal(lemmata.sinkhorn(whole).full_tensor(), lemmata.sinkhorn(logits))  # type: ignore[attr-defined]


def each(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same numbers on both ranks
    with ranks(rank, port) as mesh:
        mixed(mesh)
        for spec in SPECS:
            if not spec.overload._schema.is_mutable:  # what writes into its arguments takes no shards
                run(spec, mesh)
            if spec.differentiable and spec.operator not in ("sinkhorn", "mhc", "compressor"):
                documents(spec, mesh)
            if spec.operator in ("csa", "hca", "swa"):
                keys_elsewhere(spec, mesh)
        wrong_shards_are_seen(mesh)


def wrong_shards_are_seen(mesh: DeviceMesh) -> None:
    """The planted error: scores of shards of the entries, each as if it had the first of them."""
    spec = next(s for s in SPECS if s.name == "indexer_scores")
    call = sample(spec)
    rank, half = dist.get_rank(), call.tensors[1].shape[1] // 2
    q, k, *rest = call.tensors
    part = spec.overload(q, k[:, half * rank : half * (rank + 1)], *rest, *call.statics.values())
    whole = DTensor.from_local(part, mesh, [Shard(2)]).full_tensor()
    assert not torch.equal(whole, spec.run(call)[..., : 2 * half])
