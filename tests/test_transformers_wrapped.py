"""Models that others have wrapped: FSDP2, parametrisations, accelerate, checkpointing, meta and fake tensors."""

import copy
import functools
from functools import partial
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

pytest.importorskip("transformers")

from lemmata.integrations import sight
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths, swapped, undo

BF16 = torch.bfloat16
IDS = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(0))
LEFT = torch.ones_like(IDS)
LEFT[0, :5] = 0
ALL = {"mhc_pre": 8, "mhc_post": 4, "mhc_head": 1, "compressor": 3, "indexer": 2, "attention": 4}
ORDERS = ["swap last", "swap first"]


def kinds(model):
    return [type(module) for module in model.modules()]


def counts(model):
    return {op: len(names) for op, names in swapped(model).items()}


def step(model, **how):
    """The loss of a batch and all gradients; and which operators ran."""
    calls = Dispatches()
    model.zero_grad()
    with calls:
        loss = model(IDS, labels=IDS, use_cache=False, **how).loss
        loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    full = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return torch.cat([loss.detach().float().view(1), *(g.float().flatten() for g in full)]), calls.calls


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def shard(model, mesh):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=BF16)
    for layer in model.model.layers:
        for module in (layer.self_attn, layer.attn_hc, layer.ffn_hc, layer):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


@pytest.mark.parametrize("order", ORDERS)
def test_fsdp(mesh, order):
    """Two runs with the same choices differ by at most twice the untouched model's error against fp64."""
    from torch.distributed.fsdp import FSDPModule

    choices, model, plain, exact = Choices(), tiny_model(), shard(tiny_model(), mesh), tiny_model().double()
    with choices.record(plain):
        untouched, _ = step(plain)
    with choices.keep(exact), Double():
        right, _ = step(exact)
    if order == "swap first":
        apply_to(model, strict=True)
    before = kinds(shard(model, mesh))
    apply_to(model, strict=True)
    attention = model.model.layers[1].self_attn
    assert counts(model) == ALL
    assert isinstance(attention, FSDPModule)
    with choices.keep(model):
        ours, calls = step(model, attention_mask=torch.ones_like(IDS))
    assert {op: calls[op] for op in ("swa", "csa", "hca", "csa_bwd", "mhc_pre_bwd")} == {
        "swa": 1, "csa": 2, "hca": 1, "csa_bwd": 2, "mhc_pre_bwd": 8
    }  # fmt: skip
    assert (ours - untouched).abs().max() <= 2 * (untouched - right).abs().max()
    assert torch.equal(step(undo(model))[0], untouched)
    assert swapped(model) == paths(model) == {}
    assert isinstance(attention, FSDPModule)
    if order == "swap last":
        assert kinds(model) == before
    assert counts(apply_to(model)) == ALL


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("order", ORDERS)
def test_parametrised_modules(order):
    def parametrised(model):
        parametrize.register_parametrization(model.model.layers[1].self_attn, "sinks", Twice())
        parametrize.register_parametrization(model.model.layers[0].attn_hc, "base", Twice())
        return model

    model = tiny_model().to(BF16)
    untouched, _ = step(parametrised(copy.deepcopy(model)))
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.model.layers[1].self_attn.sinks.mul_(2)
        doubled.model.layers[0].attn_hc.base.mul_(2)
    if order == "swap first":
        apply_to(model)
    before = kinds(parametrised(model))
    apply_to(model)
    assert counts(model) == ALL
    ours, calls = step(model)
    assert calls["csa"] == 2
    assert ours[0] == step(apply_to(doubled))[0][0]  # the parametrisation is heeded
    assert torch.equal(step(undo(model))[0], untouched)
    if order == "swap last":
        assert kinds(model) == before
    apply_to(model)
    parametrize.remove_parametrizations(model.model.layers[1].self_attn, "sinks")
    assert counts(model) == ALL
    assert not swapped(undo(model))


def test_a_class_changed_after_the_swap_keeps_the_change():
    """A parametrisation adds a property to the class; the class from before the swap does not have it."""
    attention = tiny_model().to(BF16).model.layers[0].self_attn
    parametrize.register_parametrization(attention, "sinks", Twice())
    apply_to(attention)
    type(attention).added = property(lambda self: 7)
    undo(attention)
    assert attention.added == 7
    assert not swapped(attention)


class AlignDevicesHook:
    """What accelerate's hook of this name does where nothing is offloaded: nothing to tensors that are in place."""

    offload = False

    def __init__(self):
        self.calls = 0


def add_hook(module):
    """Wrap the forward as ``accelerate.hooks.add_hook_to_module`` does."""
    module._old_forward, module._hf_hook = module.forward, AlignDevicesHook()

    def new_forward(module, *args, **kwargs):
        module._hf_hook.calls += 1
        return module._old_forward(*args, **kwargs)

    module.forward = functools.update_wrapper(functools.partial(new_forward, module), module._old_forward)


def remove_hook(module):
    module.forward = module._old_forward
    del module._old_forward, module._hf_hook


def hooked(model):
    """As ``dispatch_model`` leaves a model: every module that has parameters is wrapped."""
    for module in model.modules():
        if module.state_dict():
            add_hook(module)
    return model


@pytest.mark.parametrize("order", ORDERS)
def test_dispatched_over_devices(order):
    plain, _ = step(tiny_model().to(BF16))
    ours, expected = step(apply_to(tiny_model().to(BF16)))
    model = tiny_model().to(BF16)
    if order == "swap first":
        apply_to(model, strict=True)
    apply_to(hooked(model), strict=True)
    assert counts(model) == ALL
    got, calls = step(model)
    assert torch.equal(got, ours)
    assert calls == expected
    assert model.model.layers[2].self_attn._hf_hook.calls == 1
    for module in model.modules():
        if "_hf_hook" in vars(module):
            remove_hook(module)
    assert torch.equal(step(model)[0], ours)
    assert torch.equal(step(undo(model))[0], plain)
    assert torch.equal(step(undo(hooked(apply_to(model))))[0], plain)


def test_offloaded_parameters_are_the_modules_own():
    model = apply_to(hooked(tiny_model().to(BF16)))
    model.model.layers[1].self_attn.compressor._hf_hook.offload = True
    step(model)
    assert paths(model)["model.layers.1.self_attn"].reason == "a forward of its own in DeepseekV4CSACompressor"
    assert paths(model)["model.layers.3.self_attn"].last == "csa"


def test_accelerate_itself():
    hooks = pytest.importorskip("accelerate.hooks")
    ours, _ = step(apply_to(tiny_model().to(BF16)))
    model = tiny_model().to(BF16)
    hooks.attach_align_device_hook(model, execution_device="cpu")
    hooks.attach_execution_device_hook(model, "cpu")
    assert counts(apply_to(model, strict=True)) == ALL
    assert torch.equal(step(model)[0], ours)
    hooks.remove_hook_from_submodules(model)
    assert torch.equal(step(model)[0], ours)
    assert not swapped(undo(model))


MATMULS = torch.ops.aten.mm.default, torch.ops.aten.bmm.default


def save_all_but(matmuls, ctx, op, *args, **kwargs):
    return CheckpointPolicy.PREFER_RECOMPUTE if (op in MATMULS) == matmuls else CheckpointPolicy.MUST_SAVE


CHECKPOINTS = {
    "of transformers": lambda model: model.gradient_checkpointing_enable({"use_reentrant": False}),
    "reentrant": lambda model: model.gradient_checkpointing_enable({"use_reentrant": True}),
    **{
        f"selective, of each {part}, saving {'all but' if but else 'only'} products": partial(
            lambda model, part, but: selectively(model, part, but), part=part, but=but
        )
        for part in ("layer", "attention")
        for but in (True, False)
    },
}


def selectively(model, part, but):
    policy = partial(create_selective_checkpoint_contexts, partial(save_all_but, but), allow_cache_entry_mutation=True)
    for layer in model.model.layers:
        module = layer if part == "layer" else layer.self_attn
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, context_fn=policy)


needs_no_cache = pytest.mark.skipif(
    Version(version("transformers")) < Version("5.14"),
    reason="this transformers makes a cache, which a recomputation would extend, untouched too",
)


@needs_no_cache
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpointing_of_other_dtypes(name):
    """Attention is the module's own."""
    model = apply_to(tiny_model().train())
    expected, _ = step(model)
    CHECKPOINTS[name](model)
    assert torch.equal(step(model)[0], expected)


@needs_no_cache
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpointing(name, padded):
    how = {"attention_mask": LEFT} if padded else {}
    model = apply_to(tiny_model().to(BF16).train(), strict=True)
    expected, _ = step(model, **how)
    CHECKPOINTS[name](model)
    got, calls = step(model, **how)
    assert torch.equal(got, expected)
    assert calls["csa_bwd"] == (4 if padded else 2)


@needs_no_cache
def test_a_recomputation_of_a_layer_that_nobody_told():
    """Where the layer looks at its mask, in the forward but no more in the recomputation, the operators are the same."""
    model = apply_to(tiny_model().to(BF16).train())
    expected, _ = step(model)
    for hook in list(model.model._forward_pre_hooks):
        del model.model._forward_pre_hooks[hook]
    selectively(model, "attention", True)
    assert torch.equal(step(model)[0], expected)
    with pytest.MonkeyPatch.context() as patch:  # the planted error: a look that shows

        class Shown:
            def __enter__(self):
                pass

            def __exit__(self, *error):
                pass

        patch.setattr(sight, "_disable_current_modes", Shown)
        with pytest.raises(RuntimeError):
            step(model)


@pytest.mark.parametrize("how", [{"attention_mask": LEFT}, {"position_ids": torch.arange(40)[None]}], ids=list)
@torch.no_grad()
def test_meta_and_fake_tensors(how):
    model = tiny_model(experts_implementation="batched_mm").to(BF16)
    apply_to(model, strict=True)
    calls = Dispatches()
    with calls:
        on_meta = copy.deepcopy(model).to("meta")
        given = {name: tensor.to("meta") for name, tensor in how.items()}
        if "attention_mask" in how:  # without one, transformers asks the positions
            out = on_meta(IDS.to("meta"), use_cache=False, **given).logits
            assert out.shape == (2, 40, 256)
            assert out.is_meta
            assert calls.calls["csa"] == 4
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in how.items()}
        state = {n: mode.from_tensor(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
        out = torch.func.functional_call(model, state, (mode.from_tensor(IDS),), {"use_cache": False} | fakes).logits
    assert out.shape == (2, 40, 256)
    assert paths(model)["model.layers.0.self_attn"].last == "swa by rows"
