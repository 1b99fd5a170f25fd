"""Training a swapped model as people do: Trainer, LoRA, accelerate, a scaler; against the untouched one and fp64."""

import copy
from functools import partial

import pytest
import torch

import lemmata

pytest.importorskip("transformers")

from batches import BF16, BY_ROWS, CALLS, IDS, LENGTH, compared, gradient, masked, of_attention
from lemmata.integrations.observe import Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths, swapped

STEPS = 2
MIXED = {"bf16": (BF16, {}), "bf16 autocast": (torch.float32, {"bf16": True})}


def dataset():
    """Sequences of which each second one is padded on the right, as collators pad."""
    ids = torch.randint(1, 256, (2 * STEPS, LENGTH), generator=torch.Generator().manual_seed(3))
    mask = masked((1, slice(-7, None))).repeat(STEPS, 1)
    rows = zip(ids, mask, strict=True)
    return [{"input_ids": i, "labels": torch.where(m == 1, i, -100), "attention_mask": m} for i, m in rows]


def doubled(function, *args, **kwargs):
    with Double():
        return function(*args, **kwargs)


def trained(model, folder, **settings):
    """The losses of a Trainer's run with checkpointing, and what it did to the parameters, by the learning rate."""
    from accelerate.state import AcceleratorState
    from transformers import Trainer, TrainingArguments

    AcceleratorState._reset_state(reset_partial_state=True)  # it would remember the autocast of the run before
    if model.dtype is torch.float64:
        settings = {}
        for part in (part for layer in model.model.layers for part in layer.children()):
            part.forward = partial(doubled, part.forward)  # no mode of the caller's reaches a recomputation
    before, rate = copy.deepcopy(model.state_dict()), 0.1
    args = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        optim="sgd",  # Adam's first step is of one size for the smallest of gradients too
        lr_scheduler_type="constant",
        learning_rate=rate,
        max_grad_norm=0,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        data_seed=0,
        **settings,
    )
    trainer = Trainer(model=model, args=args, train_dataset=dataset())
    trainer.train()
    losses = torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log], dtype=torch.float64)
    assert len(losses) == STEPS
    moved = [(p.detach().double() - before[name].double()).flatten() / rate for name, p in model.named_parameters()]
    model.load_state_dict(before)
    return torch.cat([losses, *moved])


@pytest.mark.parametrize("name", MIXED)
def test_a_run_of_the_trainer_with_checkpointing(name, tmp_path):
    pytest.importorskip("accelerate")
    dtype, settings = MIXED[name]
    model = tiny_model().to(dtype)
    ours = apply_to(copy.deepcopy(model), strict=True)
    distance, limit, calls = compared(model, partial(trained, folder=tmp_path, **settings), ours)
    assert distance <= limit
    # each forward is run again for its backward
    assert of_attention(calls) == {"csa": 4 * 2 * STEPS}
    assert calls["csa_bwd"] == 4 * STEPS
    assert {path.last for path in paths(ours).values()} >= {
        "swa by rows",
        "csa by rows",
        "hca by rows",
        "mhc_pre",
        "mhc_post",
    }


def test_a_wrong_operator_in_a_run_of_the_trainer_is_noticed(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    right = lemmata.csa
    monkeypatch.setattr(lemmata, "csa", lambda *tensors, scale, **how: right(*tensors, scale=2 * scale, **how))
    distance, limit, _ = compared(tiny_model(), partial(trained, folder=tmp_path, bf16=True))
    assert distance > limit


PADDED = CALLS["padded right"][0]
ALL = {"mhc_pre": 8, "mhc_post": 4, "mhc_head": 1, "compressor": 3, "indexer": 2, "attention": 4}


def counts(model):
    return {op: len(names) for op, names in swapped(model).items()}


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = ["q_a_proj", "q_b_proj", "kv_proj", "gate_proj", "o_b_proj"]
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


@pytest.mark.parametrize("swap_first", [False, True], ids=["swap last", "swap first"])
def test_lora(swap_first):
    pytest.importorskip("peft")
    plain, model = with_lora(tiny_model().to(BF16)), tiny_model().to(BF16)
    model = with_lora(apply_to(model, strict=True)) if swap_first else apply_to(with_lora(model), strict=True)
    assert counts(model) == ALL
    distance, limit, calls = compared(plain, partial(gradient, **PADDED), model)
    assert distance <= limit
    assert of_attention(calls) == BY_ROWS
    assert {name for name, p in model.named_parameters() if p.grad is not None} > {
        f"base_model.model.model.layers.1.self_attn.kv_proj.lora_{part}.default.weight" for part in "AB"
    }
    with torch.no_grad():
        before = model(IDS, use_cache=False).logits
        merged = model.merge_and_unload()
        assert counts(merged) == ALL
        assert (merged(IDS, use_cache=False).logits - before).abs().max() <= limit_of_merging(plain)


def limit_of_merging(plain):
    """What merging costs the untouched model, whose weights it rounds to bf16; twice that, as for other roundings."""
    before = plain(IDS, use_cache=False).logits
    return 2 * (copy.deepcopy(plain).merge_and_unload()(IDS, use_cache=False).logits - before).abs().max()


def scaled(model):
    """The gradients of a padded batch by a scaler, of parameters in fp32 and products in bf16."""
    if model.dtype is torch.float64:
        return gradient(model, **PADDED)
    scaler, rate = torch.amp.GradScaler("cpu", init_scale=2.0**10), 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.autocast("cpu", BF16):
        loss = model(IDS, labels=IDS, use_cache=False, **PADDED).loss
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    steps = [(b - p.detach()).double() for b, p in zip(before, model.parameters(), strict=True)]
    with torch.no_grad():
        for p, b in zip(model.parameters(), before, strict=True):
            p.copy_(b)
    return torch.cat([s.flatten() for s, p in zip(steps, model.parameters(), strict=True) if p.grad is not None])


def accelerated(model):
    """The gradients of a padded batch by accelerate, in mixed precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if model.dtype is torch.float64:
        return gradient(model, **PADDED)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare(model)
    model.zero_grad()
    accelerator.backward(prepared(IDS, labels=IDS, use_cache=False, **PADDED).loss)
    grads = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return torch.cat(grads)


@pytest.mark.parametrize("run", [scaled, accelerated], ids=["a scaler", "accelerate"])
def test_parameters_in_fp32_and_products_in_bf16(run):
    if run is accelerated:
        pytest.importorskip("accelerate")
    model = tiny_model()
    distance, limit, calls = compared(model, run, apply_to(copy.deepcopy(model), strict=True))
    assert distance <= limit
    assert of_attention(calls) == BY_ROWS
    assert calls["csa_bwd"] == 4
