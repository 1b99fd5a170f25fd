"""Contracts for the CUDA kernels of ``tile-kernels``: expert routing, engram, mHC and rotary embedding.

Its files for Ascend are written for another compiler. Parameters are those of DeepSeek-V4's layers where these are known.
"""

from __future__ import annotations

import torch
from tilelang import language as T

from lemmata.reference.contract import Elements, Size

from .entry import ROWS, Entry

_BF16, _FP32 = torch.bfloat16, torch.float32
_SMS = 132
_N = {"num_tokens": ROWS}


def _of(*shape: int, dtype: torch.dtype = _FP32) -> torch.Tensor:
    """Return a tensor that stands for its shape. The first dimension, of tokens, is known at run time whatever it is."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _bf16(*shape: int) -> torch.Tensor:
    return _of(*shape, dtype=_BF16)


ENGRAM = (
    Entry(
        "tile_kernels.engram.engram_fused_weight_cuda",
        "get_engram_fused_weight_kernel_cuda",
        {"hidden_size": 4096, "hc_mult": 4},
        {},
        ["weight_fused"],
    ),
    Entry(
        "tile_kernels.engram.engram_gate_fwd_cuda",
        "get_engram_gate_fwd_kernel_cuda",
        {"hidden_size": 4096, "eps": 1e-6, "scalar": 1 / 64, "num_sms": _SMS},
        _N,
        ["output_target", "dot_out", "gate_score", "rstd_x", "rstd_k"],
    ),
    Entry(
        "tile_kernels.engram.engram_gate_bwd_cuda",
        "get_engram_gate_bwd_kernel_cuda",
        {"hidden_size": 4096, "scalar": 1 / 64, "num_persistent_blocks": _SMS},
        _N,
        ["grad_x", "grad_kv", "grad_w_partial"],
    ),
    Entry(
        "tile_kernels.engram.engram_grad_w_reduce_cuda",
        "get_engram_grad_w_reduce_kernel_cuda",
        {"hidden_size": 4096, "num_persistent_blocks": _SMS},
        {},
        ["grad_weight_hidden", "grad_weight_embed"],
    ),
    Entry(
        "tile_kernels.engram.engram_hash_cuda",
        "get_engram_hash_kernel_cuda",
        {},
        _N,
        ["output"],
        {
            "multipliers": Elements(low=0, high=2**31),
            "ngram_token_ids": Elements(low=0, high=2**20),
            "vocab_sizes": Elements(low=1, high=2**24),
            "offsets": Elements(low=0, high=2**28),
        },
    ),
    Entry(
        "tile_kernels.engram.engram_sinkhorn_cuda",
        "get_engram_sinkhorn_momentum_kernel_cuda",
        {"grad_dtype": T.float32, "momentum_dtype": T.float32, "nesterov": True, "beta1": 0.9},
        {"num_rows": ROWS},
        ["momentum_buffer", "sinkhorn_input"],
    ),
    Entry(
        "tile_kernels.engram.engram_sinkhorn_cuda",
        "get_engram_sinkhorn_step_kernel_cuda",
        {"head_dim": 1024, "eps": 1e-6, "num_ctas": _SMS},
        {"num_rows": ROWS},
        ["row_scale", "row_norm", "col_sumsq_partial"],
    ),
    Entry(
        "tile_kernels.engram.engram_sinkhorn_cuda",
        "get_engram_sinkhorn_step_reduce_kernel_cuda",
        {"head_dim": 1024, "num_ctas": _SMS},
        {},
        ["col_sumsq"],
    ),
    Entry(
        "tile_kernels.engram.engram_sinkhorn_cuda",
        "get_engram_sinkhorn_finalize_kernel_cuda",
        {"head_dim": 1024, "eps": 1e-6, "alpha": 0.2},
        {"num_rows": ROWS},
        ["out"],
    ),
)

_MIXES = {"mhc_scale": _of(3), "mhc_base": _of(24)}

MHC = (
    Entry(
        "tile_kernels.mhc.expand_cuda",
        "expand_to_mhc_fwd_cuda",
        {"x": _bf16(5, 4096), "o": _bf16(5, 4, 4096)},
        {"n": ROWS},
        ["o"],
    ),
    Entry(
        "tile_kernels.mhc.expand_cuda",
        "expand_to_mhc_bwd_cuda",
        {"o_grad": _bf16(5, 4, 4096), "x_grad": _bf16(5, 4096)},
        {"n": ROWS},
        ["x_grad"],
    ),
    Entry(
        "tile_kernels.mhc.head_compute_mix_cuda",
        "mhc_head_compute_mix_fwd_cuda",
        {"input_mix": _of(5, 4), "mhc_scale": _of(1), "mhc_base": _of(4), "output_mix": _of(5, 4), "mhc_pre_eps": 1e-6},
        _N,
        ["output_mix"],
    ),
    Entry(
        "tile_kernels.mhc.head_compute_mix_cuda",
        "mhc_head_compute_mix_bwd_cuda",
        {
            **{"output_mix_grad": _of(5, 4), "input_mix": _of(5, 4), "mhc_scale": _of(1), "mhc_base": _of(4)},
            **{"input_mix_grad": _of(5, 4), "mhc_scale_grad_partial": _of(_SMS, 1)},
            **{"mhc_base_grad_partial": _of(_SMS, 4), "num_sms": _SMS},
        },
        _N,
        ["input_mix_grad", "mhc_scale_grad_partial", "mhc_base_grad_partial"],
    ),
    Entry(
        "tile_kernels.mhc.multilayer_recompute_cuda",
        "mhc_multilayer_recompute_cuda",
        {
            "initial_residual": _bf16(5, 4, 4096),
            **dict.fromkeys(("pre_mix_ptrs", "layer_input_ptrs"), _of(3, dtype=torch.int64)),
            **dict.fromkeys(
                ("layer_output_ptrs", "post_mix_ptrs", "comb_mix_ptrs", "residual_ptrs"), _of(2, dtype=torch.int64)
            ),
        },
        {"n": ROWS},
        [],
    ),
    Entry(
        "tile_kernels.mhc.norm_fn_cuda",
        "mhc_fn_normw_merge_fwd_cuda",
        {"fn": _of(24, 16384), "normw": _of(16384), "out_fn": _of(24, 16384)},
        {},
        ["out_fn"],
    ),
    Entry(
        "tile_kernels.mhc.norm_fn_cuda",
        "mhc_fn_normw_merge_bwd_cuda",
        {
            **dict.fromkeys(("fn", "out_fn_grad", "fn_grad"), _of(24, 16384)),
            **dict.fromkeys(("normw", "normw_grad"), _of(16384)),
        },
        {},
        ["fn_grad", "normw_grad"],
    ),
    Entry(
        "tile_kernels.mhc.norm_fn_cuda",
        "mhc_reduce_partials_and_rmsnorm_fwd_cuda",
        {
            **{"out_mul_splitted": _of(16, 5, 1, 24), "sqrsum_splitted": _of(16, 5, 1), "out_mul": _of(5, 1, 24)},
            **{"sqrsum": _of(5, 1), "out": _of(5, 24), "rms_group_size": 16384, "rms_eps": 1e-6, "n_splits": 16},
        },
        _N,
        ["out_mul", "sqrsum", "out"],
    ),
    Entry(
        "tile_kernels.mhc.norm_fn_cuda",
        "mhc_reduce_partials_and_rmsnorm_bwd_cuda",
        {
            **{"out_grad": _of(5, 24), "out_mul": _of(5, 1, 24), "sqrsum": _of(5, 1), "out_mul_grad": _of(5, 1, 24)},
            **{"sqrsum_grad": _of(5, 1), "rms_group_size": 16384, "rms_eps": 1e-6},
        },
        _N,
        ["out_mul_grad", "sqrsum_grad"],
    ),
    Entry(
        "tile_kernels.mhc.post_cuda",
        "mhc_post_fwd_cuda",
        {
            **{"a": _of(5, 4, 4), "b": _bf16(5, 4, 4096), "c": _of(5, 4), "d": _bf16(5, 4096)},
            **{"x": _bf16(5, 4, 4096), "vec": 8},
        },
        {"n": ROWS},
        ["x"],
    ),
    Entry(
        "tile_kernels.mhc.post_cuda",
        "mhc_post_bwd_cuda",
        {"dx": _bf16(5, 4, 4096), "a": _of(5, 4, 4), "b": _bf16(5, 4, 4096), "c": _of(5, 4), "d": _bf16(5, 4096)},
        {"n": ROWS},
        ["da", "db", "dc", "dd"],
    ),
    Entry(
        "tile_kernels.mhc.pre_apply_mix_cuda",
        "mhc_pre_apply_mix_fwd_cuda",
        {"x": _bf16(5, 4, 4096), "mix": _of(5, 4), "o": _bf16(5, 4096)},
        {"n": ROWS},
        ["o"],
    ),
    Entry(
        "tile_kernels.mhc.pre_apply_mix_cuda",
        "mhc_pre_apply_mix_bwd_cuda",
        {"o_grad": _bf16(5, 4096), "x": _bf16(5, 4, 4096), "mix": _of(5, 4), "x_grad": _bf16(5, 4, 4096)},
        {"n": ROWS},
        ["x_grad", "mix_grad"],
    ),
    Entry(
        "tile_kernels.mhc.pre_big_fuse_cuda",
        "mhc_pre_big_fuse_fwd_cuda",
        {
            **{"gemm_out_mul": _of(16, 5, 24), "gemm_out_sqrsum": _of(16, 5), **_MIXES, "residual": _bf16(5, 4, 4096)},
            **{"post_mix": _of(5, 4), "comb_mix": _of(5, 16), "layer_input": _bf16(5, 4096)},
            **{"rms_eps": 1e-6, "mhc_pre_eps": 1e-6, "mhc_sinkhorn_eps": 1e-6, "mhc_post_mult_value": 2.0},
            **{"sinkhorn_repeat": 20, "hidden_block": 512},
        },
        _N,
        ["post_mix", "comb_mix", "layer_input"],
    ),
    Entry(
        "tile_kernels.mhc.pre_split_mixes_cuda",
        "mhc_pre_split_mixes_fwd_cuda",
        {
            **{"input_mixes": _of(5, 24), **_MIXES, "pre_layer_mix": _of(5, 4), "post_layer_mix": _of(5, 4)},
            **{"comb_res_mix": _of(5, 16), "mhc_post_mult_value": 2.0, "mhc_pre_eps": 1e-6},
        },
        _N,
        ["pre_layer_mix", "post_layer_mix", "comb_res_mix"],
    ),
    Entry(
        "tile_kernels.mhc.pre_split_mixes_cuda",
        "mhc_pre_split_mixes_bwd_cuda",
        {
            **{"pre_layer_mix_grad": _of(5, 4), "post_layer_mix_grad": _of(5, 4), "comb_res_mix_grad": _of(5, 16)},
            **{"input_mixes": _of(5, 24), "post_layer_mix": _of(5, 4), **_MIXES, "input_mixes_grad": _of(5, 24)},
            **{"mhc_scale_grad_partial": _of(_SMS, 3), "mhc_base_grad_partial": _of(_SMS, 24)},
            "mhc_post_mult_value": 2.0,
        },
        _N,
        ["input_mixes_grad", "mhc_scale_grad_partial", "mhc_base_grad_partial"],
    ),
    Entry(
        "tile_kernels.mhc.pre_split_mixes_cuda",
        "mhc_pre_split_mixes_bwd_reduce_cuda",
        {
            **{"mhc_scale_grad_partial": _of(_SMS, 3), "mhc_base_grad_partial": _of(_SMS, 24)},
            **{"mhc_scale_grad": _of(3), "mhc_base_grad": _of(24), "num_sms": _SMS},
        },
        {},
        ["mhc_scale_grad", "mhc_base_grad"],
    ),
    Entry(
        "tile_kernels.mhc.sinkhorn_cuda",
        "mhc_sinkhorn_fwd_cuda",
        {"comb_res_mix": _of(5, 4, 4), "comb_res_mix_out": _of(5, 4, 4), "repeat": 20, "eps": 1e-6},
        _N,
        ["comb_res_mix_out"],
    ),
    Entry(
        "tile_kernels.mhc.sinkhorn_cuda",
        "mhc_sinkhorn_bwd_cuda",
        {"grad_output": _of(5, 4, 4), "x": _of(5, 4, 4), "grad_input": _of(5, 4, 4), "repeat": 10, "eps": 1e-6},
        _N,
        ["grad_input"],
    ),
)

ROUTING = (
    Entry(
        "tile_kernels.moe.moe_topk_gate_backward_cuda",
        "get_moe_topk_gate_backward_kernel_cuda",
        {"num_topk": 8, "num_routed_experts": 256, "aux_exists": True},
        {**_N, "num_seqs": Size(1, 2**16)},
        ["grad_logits"],
        {"topk_idx": Elements(low=-1, high=256)},
        ("num_tokens % num_seqs == 0",),
    ),
    Entry(
        "tile_kernels.moe.moe_topk_gate_forward_cuda",
        "get_moe_topk_gate_forward_kernel_cuda",
        {
            **{"num_topk": 8, "num_routed_experts": 256, "bias_exists": True, "scores_exists": True},
            **dict.fromkeys(("mask_exists", "fix_routing_mask_exists", "unmapped_topk_idx_exists"), False),
            **dict.fromkeys(("to_physical_map_exists", "image_token_mask_exists", "force_random_exists"), False),
        },
        {
            **{"num_tokens": ROWS, "unmapped_topk_idx_stride": Size(8, 64), "num_physical_topk": Size(8, 32)},
            **{"num_logical_experts": Size(256, 512), "num_duplicate_experts": Size(1, 64)},
        },
        ["topk_idx", "topk_weights", "scores"],
    ),
    Entry(
        "tile_kernels.moe.normalize_weight_cuda",
        "get_normalize_weight_kernel_cuda",
        {"num_topk": 8},
        _N,
        ["denominator", "normalized_weights"],
    ),
    Entry(
        "tile_kernels.moe.topk_gate_cuda",
        "get_topk_gate_kernel_cuda",
        {"num_experts": 256, "num_topk": 8},
        _N,
        ["topk_idx"],
    ),
)

ROPE = (
    Entry(
        "tile_kernels.transform.rope_cuda",
        "get_rope_kernel_cuda",
        {
            **{"dtype": T.bfloat16, "positions_dtype": T.int32, "nheads": 64, "rotary_dim": 64},
            **{"has_position_tensor": True, "batch_is_one": False, "interleaved": True, "conjugate": False},
            **{"cos_sin_stride": 64, "x_stride_0": 64 * 512, "x_stride_1": 512},
        },
        {
            **{"batch": Size(1, 256), "seqlen": Size(1, 2**16 - 1), "seqlen_ro": Size(1, 2**20)},
            **{"x_stride_b": Size(0, 2**31 - 8), "positions_stride_b": Size(0, 2**30), "seqlen_offsets": Size(0, 0)},
        },
        ["x"],
        {"positions": Elements(low=0, high="seqlen_ro")},
        ("x_stride_b % 8 == 0", "x_stride_b >= seqlen * 64 * 512"),
        probes=tuple(
            {
                **{"batch": 3, "seqlen": n, "seqlen_ro": 4096, "positions_stride_b": n},
                "x_stride_b": n * 2**15,
                "seqlen_offsets": 0,
            }
            for n in (1009, 2**15)
        ),
    ),
)

ENTRIES = (*ENGRAM, *MHC, *ROUTING, *ROPE)
