"""What each of two ranks trains, swapped and untouched; a process of its own imports it by this name."""

import copy

import torch
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from batches import BF16, IDS, counted, masked, of_attention
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths, swapped, undo

LEFT = masked((0, slice(0, 5)), (1, slice(0, 9)))
BATCHES = {
    "padded left": ({"attention_mask": LEFT, "position_ids": counted(LEFT)}, {"swa": 1, "csa": 1, "hca": 1}),
    "padded": ({"attention_mask": masked((0, slice(0, 5)), (1, slice(-9, None)))}, {"csa": 3}),
}


def small_model():
    """A layer of each kind."""
    return tiny_model(num_hidden_layers=3)


def inner(model):
    return model.module if isinstance(model, DistributedDataParallel) else model


def sharded(model):
    """Each attention, each hyper-connection, each layer and the model are units of FSDP2, in bf16 for the products."""
    policy, mesh = MixedPrecisionPolicy(param_dtype=BF16), dist.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        for module in (layer.self_attn, layer.attn_hc, layer.ffn_hc, layer):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def replicated(model):
    return DistributedDataParallel(model.to(BF16), find_unused_parameters=True)


def whole(grad):
    return grad.full_tensor() if hasattr(grad, "full_tensor") else grad


def step(model, inputs, average=False):
    """The loss of this rank's sequence, and the gradients, which are means over the ranks."""
    row = slice(dist.get_rank(), dist.get_rank() + 1)
    given = {name: tensor[row] for name, tensor in inputs.items()}
    model.zero_grad()
    loss = model(IDS[row], labels=IDS[row], use_cache=False, **given).loss
    loss.backward()
    flat = torch.cat([whole(p.grad).double().flatten() for p in model.parameters() if p.grad is not None])
    if average:
        dist.all_reduce(flat)
        flat /= 2
    return torch.cat([loss.detach().double().view(1), flat])


class Untouched:
    """What an untouched model does in a batch, and the right results."""

    def __init__(self, plain, inputs):
        self.choices, exact = Choices(), small_model().double()
        if isinstance(plain, DistributedDataParallel):
            exact = copy.deepcopy(plain.module).double()
        with self.choices.record(inner(plain)):
            self.results = step(plain, inputs)
        with self.choices.keep(exact), Double():
            self.limit = 2 * (self.results - step(exact, inputs, average=True)).abs().max()

    def compared(self, model, inputs):
        """How far a swapped model is from it, how far that may be, and which operators of attention ran."""
        calls = Dispatches()
        with self.choices.keep(inner(model)), calls:
            ours = step(model, inputs)
        return (ours - self.results).abs().max(), self.limit, of_attention(calls.calls)


def agree(wrap, plain, batches):
    """Compare the two orders of wrapping and swapping with what was wrapped alone."""
    untouched = {name: Untouched(plain, inputs) for name, (inputs, _) in batches.items()}
    for swap_first in (False, True):
        model = small_model()
        if swap_first:
            apply_to(model, strict=True)
        model = apply_to(wrap(model), strict=True)
        assert {op: len(names) for op, names in swapped(model).items()} == {
            "mhc_pre": 6, "mhc_post": 3, "mhc_head": 1, "compressor": 2, "indexer": 1, "attention": 3
        }  # fmt: skip
        for name, (inputs, expected) in batches.items():
            distance, limit, calls = untouched[name].compared(model, inputs)
            assert distance <= limit, (wrap, swap_first, name, distance, limit)
            assert calls == expected, (wrap, swap_first, name)
        inputs, _ = batches["padded"]
        assert torch.equal(step(undo(model), inputs), untouched["padded"].results)
        assert not paths(model)
        assert isinstance(inner(model).model.layers[0].self_attn, FSDPModule) == (wrap is sharded)


def wrong_sinks_are_seen(plain):
    """The planted error: sinks in another order, on one rank alone; its part of the gradients reaches the other."""
    untouched, model = Untouched(plain, {}), replicated(apply_to(small_model(), strict=True))
    sinks = inner(model).model.layers[0].self_attn.sinks
    with torch.no_grad():
        sinks.copy_(sinks.flip(0) if dist.get_rank() == 0 else sinks)
    distance, limit, _ = untouched.compared(model, {})
    assert distance > limit


def each(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        agree(sharded, sharded(small_model()), BATCHES)
        plain = replicated(small_model())
        agree(replicated, plain, {"padded": BATCHES["padded"]})
        wrong_sinks_are_seen(plain)
    finally:
        dist.destroy_process_group()
