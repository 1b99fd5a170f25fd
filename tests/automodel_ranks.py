"""What each of two ranks trains, swapped and untouched; a process of its own imports it by this name."""

import copy
from contextlib import contextmanager
from unittest import mock

import torch
from nemo_automodel.components.models.deepseek_v4.cp import (
    dsv4_cp_local_seq_multiple,
    make_dsv4_contiguous_shard_cp_batch_and_ctx,
)
from nemo_automodel.components.models.deepseek_v4.fsdp import fully_shard_deepseek_v4
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.nn.functional import cross_entropy

import lemmata
from automodel_models import (
    BF16,
    BY_POSITION,
    BY_ROWS,
    IDS,
    Picks,
    beyond,
    exact,
    of_attention,
    on,
    packed,
    run,
    tiny,
    whole,
)
from lemmata.integrations import automodel_attention
from lemmata.integrations.automodel import apply_to, paths, swapped, undo
from lemmata.integrations.observe import Dispatches, Double
from test_automodel_compressor import in_fp64 as compress_in_fp64
from test_automodel_compressor import wide
from test_automodel_exact import EXACT, in_fp64

LABELS = torch.cat([IDS[:, 1:], torch.full((2, 1), -100)], 1)
PADDED = {"attention_mask": torch.ones_like(IDS).index_fill(1, torch.tensor([2, 3, 33, 34]), 0)}
ALIGNED = torch.stack([torch.cat([torch.arange(16), torch.arange(48)]), torch.arange(32).repeat(2)])
WHOLE = torch.stack([torch.arange(64), torch.arange(32).repeat(2)])
BATCHES = {
    "nothing said": ({}, BY_POSITION),
    "padded": (PADDED, BY_ROWS),
    "one document": (packed([64, 0], [32, 32], position_ids=WHOLE), BY_ROWS),
    "packed": (packed([16, 48], [32, 32], position_ids=ALIGNED), BY_ROWS),
}

UNDER_FSDP = {"mhc_pre": 8, "mhc_post": 8, "mhc_head": 0, "compress": 3}
ALL_CALLS = {"mhc_pre": 8, "mhc_post": 8, "mhc_head": 1, "compress": 5}  # also of indexers that are wide
OF_HEAD = "streams in torch.float32, of which the module's sum is not rounded to bfloat16"  # FSDP2 makes them fp32


def sharded(model):
    """The blocks and the model as AutoModel makes units of FSDP2: bf16 for the products, some modules in fp32."""
    policy, mesh = MixedPrecisionPolicy(param_dtype=BF16), dist.init_device_mesh("cpu", (2,))
    for block in model.model.layers.values():
        fully_shard_deepseek_v4(block, mesh=mesh, mp_policy=policy)
    return fully_shard_deepseek_v4(model, mesh=mesh, mp_policy=policy)


def mean_over_ranks(results):
    """The gradients as FSDP2 has them, and this rank's logits."""
    for name, grad in results.items():
        if name != "logits":
            dist.all_reduce(grad)
            grad /= 2
    return results


def fsdp(batches):
    """Compare the two orders of sharding and swapping with what was sharded alone."""
    row, plain_model = slice(dist.get_rank(), dist.get_rank() + 1), sharded(tiny())
    for how, expected in batches.values():
        given = {name: x[row] if isinstance(x, torch.Tensor) else x for name, x in how.items()}
        picks = Picks()
        with picks.record(plain_model):
            plain = run(plain_model, IDS[row], **given)
        right = mean_over_ranks(exact(tiny(torch.float64), picks, IDS[row], **given))
        for swap_first in (False, True):
            model = apply_to(sharded(apply_to(tiny()) if swap_first else tiny()))
            assert {op: len(names) for op, names in swapped(model).items()} == {
                "mhc_pre": 8,
                "mhc_post": 4,
                "mhc_head": 1,
                "compressor": 3,
                "indexer": 2,
                "attention": 4,
            }
            calls = Dispatches()
            with picks.keep(model), calls:
                got = run(model, IDS[row], **given)
            assert beyond(got, plain, right) == {}, (swap_first, beyond(got, plain, right))
            assert of_attention(calls.calls) == expected
            assert {op: calls.calls[op] for op in UNDER_FSDP} == UNDER_FSDP
            assert {n: path.reason for n, path in paths(model).items() if path.reason} == {"model.hc_head": OF_HEAD}
        again = run(undo(model), IDS[row], **given)
        assert all(torch.equal(again[n], plain[n]) for n in plain)
        assert isinstance(model.model.layers["0"].attn_hc, FSDPModule)


def of_rank(model, device, how):
    """This rank's part of a batch as AutoModel cuts it, and its labels."""
    mesh = dist.init_device_mesh(device.type, (2,))
    batch = on(device, {"input_ids": IDS, "labels": LABELS, **how})
    multiple = dsv4_cp_local_seq_multiple(model)
    _, batch, _ = make_dsv4_contiguous_shard_cp_batch_and_ctx(mesh, None, batch, pad_multiple=multiple)
    return batch, batch.pop("labels")


def step(model, batch, labels):
    """The logits, and the gradients of the mean loss of all tokens, of which other ranks may have the others."""
    model.zero_grad()
    logits = model(**batch).logits
    total = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / int((LABELS >= 0).sum())
    total.backward()
    grads = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach()} | grads


def on_both(model, device, how):
    """What the two ranks compute together."""
    results = step(model, *of_rank(model, device, how))
    parts = [torch.empty_like(results["logits"]) for _ in range(2)]
    dist.all_gather(parts, results["logits"].contiguous())
    for name, grad in results.items():
        if name != "logits":
            dist.all_reduce(grad)
    return results | {"logits": torch.cat(parts, 1)}


def context_parallel(device, batches):
    """In bf16, two ranks together err no more than twice as much as one that is untouched, and choose no more otherwise."""
    queries = slice(dist.get_rank() * 32, (dist.get_rank() + 1) * 32)
    for name, (how, expected) in batches.items():
        model, picks, alone = tiny(BF16, index_head_dim=64).to(device), Picks(), on(device, {"input_ids": IDS, **how})
        with picks.record(model):
            plain = step(model, alone, LABELS.to(device))
        right_model = copy.deepcopy(model).double().cpu()
        with picks.keep(right_model) as exact, Double():
            right = step(right_model, {"input_ids": IDS, **how}, LABELS)
        ours, calls = apply_to(copy.deepcopy(model), strict=True), Dispatches()
        with picks.keep(ours, (slice(None), queries)) as rows, calls:
            got = on_both(ours, device, how)
        assert beyond(got, plain, right) == {}, (name, beyond(got, plain, right))
        assert of_attention(calls.calls) == expected, (name, calls.calls)
        assert {op: calls.calls[op] for op in ALL_CALLS} == ALL_CALLS, (name, calls.calls)
        assert rows["moved"] <= 2 * exact["moved"] + 2, (name, rows, exact)  # of half of the tokens
        assert {path.reason for path in paths(ours).values()} == {None}


def context_parallel_in_fp64(op, wrong=None):
    """How far two ranks together are from one that is untouched, in fp64, by batch, of the largest number of a tensor.

    Without the weights of norms: torch sums their gradients over tokens in fp32, untouched too.
    """
    apart = {}
    for name, (how, _) in BATCHES.items():
        model = tiny(torch.float64)
        ours = apply_to(copy.deepcopy(model), only=[op], strict=True)
        with in_double[op](wrong):
            plain = step(model, {"input_ids": IDS, **how}, LABELS)
            got = on_both(ours, torch.device("cpu"), how)
        assert plain.keys() == got.keys()
        assert {path.reason for path in paths(ours).values()} == {None}
        names = [n for n in plain if "norm" not in n]
        apart[name] = max(float((got[n] - plain[n]).abs().max() / (plain[n].abs().max() + 1e-12)) for n in names)
    return apart


@contextmanager
def attention_in_fp64(wrong):
    operators = {op: in_fp64(op) for op in ("swa", "csa", "hca")} | (wrong or {})
    wider = mock.patch.object(automodel_attention, "_BF16", torch.float64)
    with wider, mock.patch.multiple(lemmata, **operators), Double():
        yield


in_double = {"attention": attention_in_fp64, "compressor": lambda wrong: wide(wrong or compress_in_fp64)}


def from_the_beginning(op):
    """The planted error: the second rank counts its positions from 0."""

    def call(*tensors, offset, **how):
        return in_fp64(op)(*tensors, offset=torch.zeros_like(offset), **how)

    return call


def without_the_past(*tensors, past, offset, **how):
    """The planted error: the second rank's first window overlaps none, as the first rank's."""
    return compress_in_fp64(*tensors, past=past, offset=0 * offset, **how)


def each(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        fsdp({"nothing said": BATCHES["nothing said"], "padded": BATCHES["padded"]})
        context_parallel(torch.device("cpu"), BATCHES)
        planted = {"attention": {op: from_the_beginning(op) for op in ("swa", "hca")}, "compressor": without_the_past}
        for op, error in planted.items():
            apart = context_parallel_in_fp64(op)
            assert max(apart.values()) < EXACT, (op, apart)
            wrong = context_parallel_in_fp64(op, error)
            assert wrong["nothing said"] > 1e6 * EXACT, (op, wrong)
    finally:
        dist.destroy_process_group()


def each_gpu(rank, port):
    """Context parallelism over two GPUs, on the kernels."""
    torch.cuda.set_device(rank)
    how = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": 2}
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank), **how)
    try:
        context_parallel(torch.device("cuda", rank), BATCHES)
    finally:
        dist.destroy_process_group()
