"""Padded and packed batches of transformers' DeepSeek-V4 on the operators, whoever looks at the mask, or nobody."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch

pytest.importorskip("transformers")

from transformers import DynamicCache

from batches import (
    BF16,
    BY_POSITION,
    BY_ROWS,
    CALLS,
    IDS,
    KINDS,
    LEFT,
    LENGTH,
    compared,
    decode,
    gradient,
    of_attention,
    prefill,
)
from lemmata.integrations import attention, sight
from lemmata.integrations.observe import Dispatches
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths


@pytest.mark.parametrize("name", CALLS)
def test_prefill(name, device):
    how, expected = CALLS[name]
    apart, limit, calls = compared(tiny_model().to(device, BF16), partial(prefill, **how))
    assert of_attention(calls) == expected
    assert apart <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["padded left", "padded right", "packed"])
def test_prefill_in_other_dtypes(name, dtype):
    """Attention is the module's own, as its operators take bf16; selection and hyper-connections are lemmata's."""
    model = tiny_model().to(dtype)
    ours = apply_to(copy.deepcopy(model))
    apart, limit, calls = compared(model, partial(prefill, **CALLS[name][0]), ours)
    assert calls == {"sinkhorn": 8, "topk": 2}
    assert apart <= limit
    said = {path.reason for module, path in paths(ours).items() if module.endswith("self_attn")}
    assert said == {f"hidden states in {dtype}, where the operators take bfloat16"}


@pytest.mark.parametrize("name", ["a mask of ones", "padded left", "padded right, positions counted", "padded within"])
def test_decode(name, device):
    apart, limit, calls = compared(tiny_model().to(device, BF16), partial(decode, **CALLS[name][0]))
    assert sum(of_attention(calls).values()) == 4 * (LENGTH - 38 + 1)
    assert apart <= limit


@pytest.mark.parametrize("name", ["padded left", "padded right", "packed"])
def test_gradients(name, device):
    how, expected = CALLS[name]
    apart, limit, calls = compared(tiny_model().to(device, BF16), partial(gradient, **how))
    assert of_attention(calls) == expected
    assert {op: n for op, n in calls.items() if op.removesuffix("_bwd") in KINDS and "_bwd" in op} == {
        f"{op}_bwd": n for op, n in expected.items()
    }
    assert apart <= limit


@pytest.mark.parametrize("name", ["nothing said", "padded left", "padded right", "packed"])
def test_without_looking(name, monkeypatch):
    """As in a CUDA graph, where no element can be asked for: the rows are read off the mask."""
    monkeypatch.setattr(sight, "may_look", lambda *tensors: False)
    how = CALLS[name][0]
    apart, limit, calls = compared(tiny_model().to(BF16), partial(prefill, **how))
    assert of_attention(calls) == (BY_ROWS if how else BY_POSITION)
    assert apart <= limit


@pytest.mark.parametrize("name", ["nothing said", "packed"])
@torch.no_grad()
def test_traced_whole(name):
    """A graph cannot ask what is in a mask: it reads the rows off it, without a break."""
    how, model = CALLS[name][0], tiny_model(experts_implementation="batched_mm", num_hidden_layers=3).to(BF16)
    ours = apply_to(copy.deepcopy(model), strict=True)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    eager = prefill(copy.deepcopy(ours), **how)
    by_rows = bool(how)
    with pytest.MonkeyPatch.context() as patch:
        if by_rows:
            patch.setattr(sight, "may_look", lambda *tensors: False)
            eager = prefill(copy.deepcopy(ours), **how)
    assert torch.equal(prefill(compiled, **how), eager)
    last = [path.last for module, path in paths(ours).items() if module.endswith("self_attn")]
    assert last == [f"{op} by rows" if by_rows else op for op in KINDS]


@torch.no_grad()
def test_no_layer_looks(monkeypatch):
    """A look waits for the device: once in a forward, before the layers, and never for a prompt without mask."""
    looks, depth = [], []
    right = sight._lowest
    monkeypatch.setattr(sight, "_lowest", lambda *args: looks.append(len(depth)) or right(*args))
    monkeypatch.setattr(sight, "_lowest_of_mask", None)
    model = apply_to(tiny_model().to(BF16), strict=True)
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *call: depth.append(1))
        layer.register_forward_hook(lambda *call: depth.pop() and None)
    for how, _ in CALLS.values():
        prefill(model, **how)
    assert looks == [0] * (len(CALLS) - 1)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beams", "sampled"])
def test_generate_padded(settings):
    model = apply_to(tiny_model().to(BF16), strict=True)
    calls = Dispatches()
    torch.manual_seed(0)
    with calls:
        out = model.generate(IDS[:, :20], attention_mask=LEFT[:, :20], max_new_tokens=6, **settings)
    assert out.shape == (2, 26)
    assert sum(of_attention(calls.calls).values()) == 4 * 6


def test_left_padding_changes_no_logit_of_the_window_alone():
    """Where nothing is compressed, a padded sequence gives what it gives without its padding, bit for bit."""
    model = tiny_model(num_hidden_layers=1, layer_types=["sliding_attention"], mlp_layer_types=["moe"]).to(BF16)
    apply_to(model, strict=True)
    padded = prefill(model, **CALLS["padded left"][0])[0, 5:]
    with torch.no_grad():
        alone = model(IDS[:1, 5:], use_cache=False).logits[0]
    assert torch.equal(padded, alone)


def test_a_mask_of_the_callers_is_looked_at_by_the_layers():
    """One of four dimensions: the causal window, and all that came before it."""
    causal = torch.ones(LENGTH, LENGTH).tril()
    for seen, expected in ((causal.triu(-7), BY_POSITION), (causal, {})):
        mask = torch.where(seen == 1, 0.0, torch.finfo(BF16).min).to(BF16)[None, None].expand(2, -1, -1, -1)
        model = tiny_model().to(BF16)
        apart, limit, calls = compared(model, partial(prefill, attention_mask=mask), apply_to(copy.deepcopy(model)))
        assert of_attention(calls) == expected
        assert apart <= limit


def off_by_one(rows):
    return torch.where(rows > 0, rows - 1, rows)


WRONG = {
    "padding is seen": ("rows_seen", lambda f, *args: f(torch.zeros_like(args[0]), *args[1:])),
    "the rows before": ("rows_seen", lambda f, *args: off_by_one(f(*args))),
    "a row fewer": ("rows_seen", lambda f, *args: f(*args)[..., :-1]),
    "every entry seen": ("_visible", lambda f, positions, *sizes: f(positions[:, :1], *sizes).expand(-1, LENGTH, -1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reading_of_the_mask_is_noticed(name, monkeypatch):
    function, change = WRONG[name]
    right = getattr(attention, function)
    monkeypatch.setattr(attention, function, lambda *args: change(right, *args))
    case = "packed" if function == "_visible" else "padded within"
    apart, limit, calls = compared(tiny_model().to(BF16), partial(prefill, **CALLS[case][0]))
    assert +Counter(of_attention(calls)) == Counter(BY_ROWS)
    assert apart > limit


def test_a_sight_that_is_wrong_is_noticed(monkeypatch):
    monkeypatch.setattr(sight, "_lowest", lambda mask, positions, *sizes: positions.min())
    apart, limit, _ = compared(tiny_model().to(BF16), partial(prefill, **CALLS["packed"][0]))
    assert apart > limit


def refused(model, act):
    try:
        act(model)
    except Exception as error:
        return type(error), str(error)
    return None


def crop(model):
    cache = DynamicCache(config=model.config)
    model(IDS, None, None, cache)
    cache.crop(-3)


REFUSED = {
    "static": lambda model: model.generate(IDS, max_new_tokens=2, cache_implementation="static"),
    "quantised": lambda model: model.generate(IDS, max_new_tokens=2, cache_implementation="quantized"),
    "prompt lookup": lambda model: model.generate(IDS[:1], max_new_tokens=2, prompt_lookup_num_tokens=2),
    "assisted": lambda model: model.generate(IDS[:1], max_new_tokens=2, assistant_model=tiny_model(1).to(BF16)),
    "crop": crop,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_untouched_model_refuses(name):
    words = refused(tiny_model().to(BF16), REFUSED[name])
    assert words is not None
    assert refused(apply_to(tiny_model().to(BF16)), REFUSED[name]) == words


@torch.no_grad()
def reordered(model):
    cache = DynamicCache(config=model.config)
    logits = [model(IDS[:, :38], None, None, cache).logits]
    cache.reorder_cache(torch.tensor([1, 0]))
    logits += [model(IDS[:, t : t + 1], None, None, cache).logits for t in range(38, 41)]
    return torch.cat(logits, 1)


def test_a_cache_put_into_another_order():
    apart, limit, calls = compared(tiny_model().to(BF16), reordered)
    assert of_attention(calls) == {op: 4 * n for op, n in BY_POSITION.items()}
    assert apart <= limit
