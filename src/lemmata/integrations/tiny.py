"""A DeepSeek-V4 small enough for a test, with every kind of layer of the large one, from no file and no network."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor

from .originals import check_version

_SPREAD = 2.0  # of the hyper-connections' bases and scales
_CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "layer_types": [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
        "compressed_sparse_attention",
    ],
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "partial_rotary_factor": 8 / 64,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
    "index_n_heads": 8,
    "index_head_dim": 32,
    "index_topk": 4,
    "max_position_embeddings": 2048,
    "num_nextn_predict_layers": 0,
    "eos_token_id": None,  # every byte is text, none ends it
    "pad_token_id": 0,
    "attn_implementation": "eager",
    "experts_implementation": "eager",  # the default refuses fp64
}


def tiny_model(seed: int = 0, **config: Any) -> Any:
    """Return a random ``DeepseekV4ForCausalLM`` of 0.3 million parameters whose tokens are bytes.

    Its parameters are drawn wide: sinks, biases and scales that transformers initialises to constants would hide whole
    terms, and flat Sinkhorn logits would converge so fast that a missing iteration or a wrong order would not show. The
    heads of an indexer have half of their variance in common: no head that agrees with an entry means a score of exactly
    0, and without such entries no ties would show.

    Args:
        seed: fixes every parameter.
        **config: overrides of the configuration.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    check_version()
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    model = DeepseekV4ForCausalLM(DeepseekV4Config(**copy.deepcopy(_CONFIG) | config)).eval()
    _draw(model, torch.Generator().manual_seed(seed))
    return model


def _draw(model: Any, generator: torch.Generator) -> None:
    """Give a model random parameters, and experts to its tokens."""

    def normal(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("indexer.q_b_proj.weight"):
                heads = tensor.view(model.config.index_n_heads, -1, tensor.shape[-1])
                normal(tensor, (2 * tensor.shape[-1]) ** -0.5)
                common = torch.randn(heads.shape[1:], generator=generator)
                heads += common * (2 * tensor.shape[-1]) ** -0.5
            elif "norm" in name:
                normal(tensor, 0.1, mean=1.0)
            elif tensor.ndim < 2 or name.endswith("position_bias"):
                normal(tensor, _SPREAD if "_hc." in name else 0.5)
            else:
                normal(tensor, tensor.shape[-1] ** -0.5)
        for name, tensor in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                normal(tensor, 0.1)
            elif name.endswith("tid2eid"):  # which experts a token goes to: distinct ones
                scores = torch.rand(len(tensor), model.config.n_routed_experts, generator=generator)
                tensor.copy_(scores.argsort(-1)[:, : tensor.shape[1]])
