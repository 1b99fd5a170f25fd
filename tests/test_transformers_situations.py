"""What people do with a whole model: swapped, it gives what it gives untouched, within what bf16 costs it, on the operators."""

import copy
import pickle
import threading
from functools import partial
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, DynamicCache, LogitsProcessor

from batches import BF16, BY_POSITION, BY_ROWS, CALLS, IDS, LENGTH, compared, gradient, of_attention, prefill
from lemmata.integrations.observe import Dispatches
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths, swapped, undo

PADDED = CALLS["padded right"][0]
MASK = PADDED["attention_mask"]
NO_HASH = {"mlp_layer_types": ["moe"] * 4}


def model_of(name):
    """A model for a situation; routers by hash want the tokens themselves."""
    of_tokens = {} if name not in ("embeddings in the place of tokens", "the gradient of the inputs") else NO_HASH
    return tiny_model(**of_tokens).to(BF16)


def embedded(model):
    return model(inputs_embeds=model.get_input_embeddings()(IDS), use_cache=False, **PADDED).logits


def in_chunks(model, size=16):
    """A padded prompt read in chunks, as prefill of long prompts is."""
    cache, logits = DynamicCache(config=model.config), []
    for start in range(0, LENGTH, size):
        end = min(start + size, LENGTH)
        logits.append(model(IDS[:, start:end], MASK[:, :end], None, cache).logits)
    return torch.cat(logits, 1)


def branched(model):
    """Two continuations of one prompt, from copies of its cache, as tree search does."""
    cache = DynamicCache(config=model.config)
    model(IDS[:, :30], None, None, cache)
    twin = copy.deepcopy(cache)
    return torch.cat([model(IDS[:, 30 + at : 31 + at], None, None, c).logits for at, c in enumerate((cache, twin))], 1)


def one_by_one(model):
    return torch.cat([model(IDS[:, :n], use_cache=False).logits[:, -1:] for n in (1, 2, 7, 8, 9)], 1)


def hidden_states(model):
    out = model(IDS, use_cache=False, output_hidden_states=True, output_router_logits=True, **PADDED)
    assert len(out.hidden_states) == 5
    return out.logits


def of_another_dtype(dtype):
    return lambda model: model(IDS, MASK.to(dtype), use_cache=False).logits


def flattened(model):
    """Documents in one row, as the collator has them: positions that restart, and lengths that nobody here reads."""
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = collate([{"input_ids": document.tolist()} for document in (IDS[0, :20], IDS[1, :24], IDS[0, 20:])])
    assert batch["cu_seq_lens_q"].tolist() == [0, 20, 44, 68]
    return model(use_cache=False, **batch).logits


def in_inference_mode(model):
    with torch.inference_mode():
        return prefill(model, **PADDED).clone()


def functional(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return torch.func.functional_call(model, parameters, (IDS,), {"use_cache": False} | PADDED).logits


def averaged(model):
    return prefill(torch.optim.swa_utils.AveragedModel(model), **PADDED)


def data_parallel(model):
    return prefill(torch.nn.DataParallel(model), **PADDED)


def last_only(model):
    return model(IDS, use_cache=False, logits_to_keep=3, **PADDED).logits


def several_lengths(model):
    """A batch of one sequence, and of no padding, and of padding again: what was seen before is not kept."""
    logits = [prefill(model, **PADDED), prefill(model), prefill(model, **PADDED)]
    return torch.cat(logits)


SITUATIONS = {
    "embeddings in the place of tokens": (embedded, BY_ROWS),
    "a padded prompt in chunks": (in_chunks, {"swa": 2, "csa": 8, "hca": 2}),
    "copies of a cache": (branched, {op: 3 * n for op, n in BY_POSITION.items()}),
    "prompts shorter than the window, one of one token": (one_by_one, {op: 5 * n for op, n in BY_POSITION.items()}),
    "hidden states and router logits asked for": (hidden_states, BY_ROWS),
    "a mask of booleans": (of_another_dtype(torch.bool), BY_ROWS),
    "a mask in int32": (of_another_dtype(torch.int32), BY_ROWS),
    "a mask in fp32": (of_another_dtype(torch.float32), BY_ROWS),
    "documents flattened by a collator": (flattened, BY_ROWS),
    "inference mode": (in_inference_mode, BY_ROWS),
    "torch.func.functional_call": (functional, BY_ROWS),
    "an average of models": (averaged, BY_ROWS),
    "nn.DataParallel": (data_parallel, BY_ROWS),
    "logits of the last tokens": (last_only, BY_ROWS),
    "padding, none, and padding again": (several_lengths, {"csa": 10, "swa": 1, "hca": 1}),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_logits(name):
    run, expected = SITUATIONS[name]
    distance, limit, calls = compared(model_of(name), torch.no_grad()(run))
    assert distance <= limit
    assert of_attention(calls) == expected


def of_inputs(model):
    """The gradient of frozen parameters' inputs, as prompt tuning asks for."""
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=x, labels=IDS, use_cache=False, **PADDED).loss.backward()
    return x.grad.double()


def accumulated(model):
    """The sum of the gradients of two batches."""
    model.zero_grad()
    for row in (slice(0, 1), slice(1, 2)):
        model(IDS[row], MASK[row], labels=IDS[row], use_cache=False).loss.backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def kept_on_the_cpu(model):
    with torch.autograd.graph.save_on_cpu():
        return gradient(model, **PADDED)


def with_torch_func(model):
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters):
        given = {"labels": IDS, "use_cache": False} | PADDED
        return torch.func.functional_call(model, parameters, (IDS,), given).loss

    return torch.cat([g.double().flatten() for g in torch.func.grad(loss)(parameters).values()])


def deterministic(model):
    torch.use_deterministic_algorithms(True)
    try:
        return gradient(model, **PADDED)
    finally:
        torch.use_deterministic_algorithms(False)


GRADIENTS = {
    "the gradient of the inputs": (of_inputs, 1),
    "gradients accumulated": (accumulated, 2),
    "saved tensors on the CPU": (kept_on_the_cpu, 1),
    "torch.func.grad": (with_torch_func, 1),
    "deterministic algorithms": (deterministic, 1),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    run, steps = GRADIENTS[name]
    distance, limit, calls = compared(model_of(name), run)
    assert distance <= limit
    assert sum(of_attention(calls).values()) == sum(n for op, n in calls.items() if op in BWD) == 4 * steps


BWD = "swa_bwd", "csa_bwd", "hca_bwd"


@pytest.fixture
def ours():
    return apply_to(tiny_model().to(BF16), strict=True)


def test_threads(ours):
    """Each with a mask of its own: what a batch sees is not kept in the model."""
    calls = [how for how, _ in CALLS.values()][:6]
    wanted, got = [prefill(ours, **how) for how in calls], [torch.empty(0)] * len(calls)

    def work(at):
        got[at] = prefill(ours, **calls[at])

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, got, wanted))


def reloaded(model, folder):
    """The model by way of a file, in bf16."""
    model.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=BF16, attn_implementation="eager")
    loaded.config._experts_implementation = "eager"
    return loaded


def test_saved_and_loaded(ours, tmp_path):
    """A saved model is transformers' own; one that is pickled whole is swapped still."""
    wanted, plain = prefill(ours, **PADDED), prefill(tiny_model().to(BF16), **PADDED)
    loaded = reloaded(ours, tmp_path)
    assert not swapped(loaded)
    assert swapped(apply_to(loaded, strict=True)) == swapped(ours)
    whole = pickle.loads(pickle.dumps(ours))
    assert torch.equal(prefill(whole, **PADDED), wanted)
    state = tiny_model(1).to(BF16)
    state.load_state_dict(ours.state_dict())
    assert torch.equal(prefill(state, **PADDED), plain)
    assert torch.equal(prefill(undo(whole), **PADDED), plain)


def under_autocast(model):
    with torch.autocast("cpu", BF16, enabled=model.dtype is BF16):
        return prefill(model, **PADDED)


def test_a_model_as_it_is_loaded_in_bf16(tmp_path):
    """Its norms, sinks and hyper-connections are in fp32, which releases before 5.20 multiply under autocast alone."""
    model = reloaded(tiny_model(), tmp_path)
    assert {p.dtype for p in model.parameters()} == {BF16, torch.float32}
    alone = Version(version("transformers")) >= Version("5.20")
    for run in (under_autocast, partial(prefill, **PADDED)) if alone else (under_autocast,):
        distance, limit, calls = compared(model, run)
        assert distance <= limit
        assert of_attention(calls) == BY_ROWS
    for refused in () if alone else (model, apply_to(copy.deepcopy(model))):
        with pytest.raises(RuntimeError, match=r"expected m1 and m2 to have the same dtype"):
            prefill(refused, **PADDED)


def test_hooks_of_a_caller_are_called(ours):
    seen = []
    for name in ("self_attn", "attn_hc", "self_attn.compressor.indexer"):
        module = ours.model.layers[1].get_submodule(name)
        module.register_forward_pre_hook(lambda *call, name=name: seen.append(f"before {name}"))
        module.register_forward_hook(lambda *call, name=name: seen.append(f"after {name}"))
    ours.model.layers[1].self_attn.register_full_backward_hook(lambda *call: seen.append("backward"))
    gradient(ours, **PADDED)
    inner = [f"{when} self_attn.compressor.indexer" for when in ("before", "after")]
    connection = [f"{when} attn_hc" for when in ("before", "after")]
    assert seen == [*connection, "before self_attn", *inner, "after self_attn", "backward"]


SETTINGS = {
    "without a cache": {"use_cache": False},
    "several returned": {"do_sample": True, "num_return_sequences": 2},
    "a prompt in chunks": {"prefill_chunk_size": 6},
    "a penalty": {"repetition_penalty": 1.3, "min_new_tokens": 4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_generate(ours, name):
    calls, mask = Dispatches(), CALLS["padded left"][0]["attention_mask"][:, :20]
    torch.manual_seed(0)
    with calls:
        out = ours.generate(IDS[:, :20], attention_mask=mask, max_new_tokens=4, **SETTINGS[name])
    assert out.shape[1] == 24
    forwards = 4 + (3 if name == "a prompt in chunks" else 0)
    assert sum(of_attention(calls.calls).values()) == 4 * forwards


class Prior(LogitsProcessor):
    """Wants certain tokens by far, so that which are generated does not hang on rounding."""

    wanted = 20 * torch.randn(LENGTH, 256, generator=torch.Generator().manual_seed(4))

    def __call__(self, input_ids, scores):
        return scores + self.wanted[input_ids.shape[1]]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["a mask of ones", "padded left"])
def test_logits_of_what_is_generated(name, beams):
    mask, sequences = CALLS[name][0]["attention_mask"][:, :20], []

    def run(model):
        told = {"attention_mask": mask, "max_new_tokens": 4, "num_beams": beams, "logits_processor": [Prior()]}
        out = model.generate(IDS[:, :20], return_dict_in_generate=True, output_logits=True, **told)
        sequences.append(out.sequences)
        return torch.stack(out.logits, 1)

    distance, limit, calls = compared(tiny_model().to(BF16), run)
    assert all(torch.equal(other, sequences[0]) for other in sequences[1:])
    assert distance <= limit
    assert sum(of_attention(calls).values()) == 4 * 4


def test_another_dtype_and_back(ours):
    wanted = prefill(ours, **PADDED)
    apply_to(ours)
    prefill(ours.float(), **PADDED)
    assert {p.last for name, p in paths(ours).items() if name.endswith("self_attn")} == {"own"}
    assert torch.equal(prefill(ours.to(BF16), **PADDED), wanted)


def compiled_apart(model, **how):
    """How far a compiled step of training is from the eager one."""
    torch._dynamo.reset()
    step = gradient(torch.compile(model, **how), **PADDED)
    torch._dynamo.reset()
    return (step - gradient(model, **PADDED)).abs().max()


def traced_model():
    return tiny_model(experts_implementation="batched_mm", num_hidden_layers=2).to(BF16)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_traced_step_of_training(dynamic):
    """Forward and backward in torch's graphs: the same bits."""
    ours = apply_to(traced_model(), strict=True)
    assert compiled_apart(ours, backend="aot_eager", dynamic=dynamic) == 0
    assert {path.last for name, path in paths(ours).items() if name.endswith("self_attn")} == {
        "swa by rows",
        "csa by rows",
    }


@pytest.mark.exhaustive
def test_a_compiled_step_of_training():
    """The compiler rounds otherwise than eager torch does, around the operators as in the untouched model."""
    model = traced_model()
    ours = apply_to(copy.deepcopy(model), strict=True)
    assert compiled_apart(ours) <= 2 * compiled_apart(model)


def test_a_batch_whose_mask_is_forgotten_is_noticed():
    """The planted error: were the mask not heeded, each of these comparisons would be beyond its bound."""
    model = tiny_model().to(BF16)
    ours = apply_to(copy.deepcopy(model), strict=True)
    ours.register_forward_pre_hook(lambda m, args, how: (args[:1], how | {"attention_mask": None}), with_kwargs=True)
    for name in ("hidden states and router logits asked for", "logits of the last tokens", "a mask of booleans"):
        distance, limit, _ = compared(model, torch.no_grad()(SITUATIONS[name][0]), ours)
        assert distance > limit, name
