"""Calls of DeepSeek-V4's attention that lemmata has no operator for, or whose mask says something else."""

from functools import partial

import pytest
import torch

pytest.importorskip("transformers")

from transformers import DynamicCache

from attention_layers import ALL, BF16, KINDS, LENGTH, agrees, on_lemmata, one_layer, run, three, watched
from lemmata.integrations import attention as integration
from lemmata.integrations import sight
from lemmata.integrations.observe import Dispatches
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths


@torch.no_grad()
def test_a_mask_is_looked_at_once_for_layers_that_nobody_told(monkeypatch):
    model, looked, right = on_lemmata(one_layer("swa")), [], sight._lowest_of_mask
    monkeypatch.setattr(sight, "_lowest_of_mask", lambda *args: looked.append(args) or right(*args))
    seen = []
    for _ in range(2):
        run(model, edit=lambda mask: seen.append(mask) or seen[0])
    assert len(looked) == 2  # the positions are others
    model(ALL, use_cache=False)
    assert len(looked) == 2


def hidden_key(mask):
    """One key more is hidden from one query of one sequence."""
    mask = mask.clone()
    mask[1, 0, 40, 38] = torch.finfo(mask.dtype).min
    return mask


MASKS = {
    "none": lambda mask: None,
    "all seen": torch.zeros_like,
    "a bias": lambda mask: mask - 1,
    "a wider window": lambda mask: torch.where(mask.roll(-1, 2) == 0, 0.0, mask),
    "of booleans": lambda mask: mask == 0,
}


def same_alone(model, **how):
    """The swapped module computes what the untouched one does, bit for bit, and by no operator."""
    calls, ours = Dispatches(), on_lemmata(model)
    torch.manual_seed(0)
    plain = run(model, **how)
    torch.manual_seed(0)
    with calls:
        got = run(ours, **how)
    assert not calls.calls
    assert torch.equal(got, plain)


@pytest.mark.parametrize("edit", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_other_masks_are_the_modules_own(op, edit):
    same_alone(one_layer(op), edit=edit)


@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_a_key_hidden_within_the_window(op):
    plain, right, got, calls = three(one_layer(op), partial(run, edit=hidden_key))
    assert calls == {"csa": 1}
    assert agrees(plain, right, got)
    assert not agrees(plain, right, run(one_layer(op)))


LOOKED_AT = {name: edit for name, edit in MASKS.items() if name not in ("none", "of booleans")}


@pytest.mark.parametrize("edit", LOOKED_AT.values(), ids=LOOKED_AT)
@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_a_mask_that_is_not_looked_at_is_noticed(op, edit, monkeypatch):
    told = sight.Sight(torch.zeros(2, dtype=torch.int32), 0, 0)
    monkeypatch.setattr(integration, "of_mask", lambda *args: told)
    with pytest.raises(AssertionError):
        same_alone(one_layer(op), edit=edit)


@torch.no_grad()
def test_a_mask_edited_in_place_is_looked_at_again():
    model, calls = on_lemmata(one_layer("swa")), Dispatches()
    mask = []

    def edited(seen):
        return mask[0] if mask else mask.append(seen) or seen

    with calls:
        run(model, edit=edited)
        mask[0].zero_()
        run(model, edit=edited)
    assert calls.calls == {"swa": 1}


def hook(model):
    model.model.layers[0].self_attn.compressor.register_forward_hook(lambda *call: None)


def mine(model):
    model.config._attn_implementation = "mine"


OTHERS = {
    "fp32": ({}, lambda model: model.float(), {}),
    "fp16": ({}, lambda model: model.half(), {}),
    "four heads": ({"num_attention_heads": 4}, None, {}),
    "another width": ({"head_dim": 32, "partial_rotary_factor": 8 / 32}, None, {}),
    "a window too wide": ({"sliding_window": 513}, None, {}),
    "dropout": ({"attention_dropout": 0.5}, lambda model: model.train(), {}),
    "a hook": ({}, hook, {}),
    "another function": ({}, mine, {}),
}


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in KINDS for name in OTHERS if (op, name) != ("swa", "a hook")]
)
@torch.no_grad()
def test_other_calls_are_the_modules_own(op, name):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    AttentionInterface.register("mine", modeling.eager_attention_forward)
    AttentionMaskInterface.register("mine", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    config, change, how = OTHERS[name]
    model = one_layer(op, **config)
    if change is not None:
        change(model)
    same_alone(model, **how)


@torch.no_grad()
def test_another_cache_is_the_modules_own():
    logits, calls = [], Dispatches()
    model = one_layer("swa")
    for each in (model, on_lemmata(model)):
        cache = DynamicCache()  # it keeps all tokens, not those of the window
        with calls:
            logits.append([each(part, past_key_values=cache).logits for part in ALL.split(40, 1)])
    assert not calls.calls
    assert all(map(torch.equal, *logits))


@pytest.mark.parametrize("by_config", [False, True])
@torch.no_grad()
def test_attentions_are_returned(by_config):
    model = apply_to(tiny_model().to(BF16))
    model.config.output_attentions = by_config
    calls = Dispatches()
    with calls:
        out = model(ALL, use_cache=False, **({} if by_config else {"output_attentions": True}))
    assert not calls.calls.keys() & set(KINDS)
    assert [a.shape[:3] for a in out.attentions] == [(2, 8, LENGTH)] * 4


@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_compiled_alone_it_is_the_modules_own(op):
    """A traced graph cannot ask what is in a mask, and nobody told."""
    model = one_layer(op)
    plain, ours = run(model), on_lemmata(model)
    attention = ours.model.layers[0].self_attn
    attention.forward = torch.compile(attention.forward, backend="eager", fullgraph=True)
    with watched(op) as calls:
        assert torch.equal(run(ours), plain)
    assert not calls
    assert "cannot be looked at now" in paths(ours)["model.layers.0.self_attn"].reason
