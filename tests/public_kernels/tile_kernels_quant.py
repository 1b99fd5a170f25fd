"""Contracts for the CUDA kernels of ``tile-kernels`` that quantise, and for the norms and activations that they are fused with.

One configuration of each: bfloat16 in, e4m3 out, scales for 128 channels (or 32, where the kernel takes no others).
"""

from __future__ import annotations

import torch
from tilelang import language as T

from lemmata.reference.contract import Elements, Size

from .entry import ROWS, Entry, Made

_COMMON = "tile_kernels.quant.common"
_BF16 = Made(_COMMON, "CastInputConfig", {"torch_dtype": torch.bfloat16})
_N = {"num_tokens": ROWS}
_STRIDE = Size(32, 2**16)


def _e4m3(*block: int) -> Made:
    """Return the configuration of an e4m3 result with a float32 scale for each block."""
    arguments = {"torch_dtype": torch.float8_e4m3fn, "sf_block": block, "clamp_min_value": 1e-4}
    return Made(_COMMON, "CastOutputConfig", arguments)


_STRIDED = ("x", "out", "out_bf16", "residual", "residual_out", "out_sf")
_NORM = ("mega_moe_sf_rows", *(f"{of}_batch_stride" for of in _STRIDED))

ENTRIES = (
    Entry(
        "tile_kernels.quant.batched_transpose_weight_sf_cuda",
        "get_batched_transpose_weight_sf_kernel_cuda",
        {"block_size": 128},
        {"num_weights": Size(1, 4096)},
        [],
    ),
    Entry(
        "tile_kernels.quant.cast_cuda",
        "get_cast_kernel_cuda",
        {"in_dtype": T.float32, "out_dtype": T.bfloat16},
        {"n": Size(1, 2**38)},
        ["y"],
    ),
    Entry(
        "tile_kernels.quant.cast_back_cuda",
        "get_cast_back_kernel_cuda",
        {
            "hidden": 4096,
            "in_config": Made(_COMMON, "CastInputConfig", {"torch_dtype": torch.float8_e4m3fn, "sf_block": (1, 128)}),
        },
        {**_N, "sf_stride": _STRIDE},
        ["out"],
    ),
    Entry(
        "tile_kernels.quant.per_token_cast_cuda",
        "get_per_token_cast_kernel_cuda",
        {"hidden": 4096, "token_stride": 4096, "in_config": _BF16, "out_config": _e4m3(1, 128)},
        {**_N, "in_sf_stride": Size(4096, 2**16), "out_sf_stride": _STRIDE},
        ["out", "out_sf"],
    ),
    Entry(
        "tile_kernels.quant.per_token_cast_and_cast_back_cuda",
        "get_per_token_cast_and_cast_back_kernel_cuda",
        {"hidden": 4096, "token_stride": 4096, "dtype": T.bfloat16, "out_config": _e4m3(1, 128)},
        _N,
        ["x"],
    ),
    Entry(
        "tile_kernels.quant.per_block_cast_cuda",
        "get_per_block_cast_kernel_cuda",
        {"hidden": 4096, "in_config": _BF16, "out_config": _e4m3(128, 128)},
        {**_N, "sf_stride": _STRIDE},
        ["out", "out_sf"],
    ),
    Entry(
        "tile_kernels.quant.per_block_cast_lossless_cuda",
        "get_per_block_cast_lossless_kernel_cuda",
        {
            **{"hidden": 4096, "token_stride": 4096, "out_config": _e4m3(128, 128)},
            "in_config": Made(_COMMON, "CastInputConfig", {"torch_dtype": torch.int8, "sf_block": (1, 32)}),
        },
        {**_N, "in_sf_stride": Size(128, 2**16), "out_sf_stride": _STRIDE},
        ["out", "out_sf"],
    ),
    Entry(
        "tile_kernels.quant.per_channel_cast_cuda",
        "get_per_channel_cast_kernel_cuda",
        {"hidden": 4096, "in_config": _BF16, "out_config": _e4m3(128, 1)},
        {**_N, "num_tokens_out": ROWS},
        ["out", "out_sf"],
        relations=("num_tokens == num_tokens_out", "num_tokens_out % 128 == 0"),
        probes=({"num_tokens": 1024, "num_tokens_out": 1024}, {"num_tokens": 2**20, "num_tokens_out": 2**20}),
    ),
    Entry(
        "tile_kernels.quant.norm_forward_cuda",
        "get_norm_forward_and_per_token_cast_kernel_cuda",
        {
            **{"hidden": 4096, "with_weight": True, "with_residual": False, "eps": 1e-6, "out_scale": 1.0},
            **{"x_dtype": T.bfloat16, "out_config": Made(_COMMON, "CastOutputConfig", {"torch_dtype": torch.bfloat16})},
            "with_rstd": True,
        },
        {
            **{"batch": Size(1, 1024), **_N, "mega_moe_sf_rows": Size(1, 2**29)},
            **{
                f"{of}_batch_stride": Size(0, 2**31 - 1)
                for of in ("x", "out", "out_bf16", "residual", "residual_out", "out_sf")
            },
            **{
                f"{of}_stride": Size(4096, 2**16)
                for of in ("x", "out", "out_bf16", "residual", "residual_out", "out_sf")
            },
        },
        ["out", "rstd"],
        relations=(
            *(f"{of}_stride % 16 == 0" for of in ("x", "out")),
            *(f"{of}_batch_stride % 16 == 0" for of in ("x", "out")),
            "out_batch_stride >= num_tokens * out_stride",
        ),
        probes=(
            {
                **dict.fromkeys(_NORM, 2**22),
                **{f"{of}_stride": 4096 for of in _STRIDED},
                "batch": 3,
                "num_tokens": 1009,
            },
            {
                **dict.fromkeys(_NORM, 2**28),
                **{f"{of}_stride": 4096 for of in _STRIDED},
                "batch": 64,
                "num_tokens": 2**16,
            },
        ),
    ),
    Entry(
        "tile_kernels.quant.norm_backward_cuda",
        "get_norm_backward_kernel_cuda",
        {
            **{"hidden": 4096, "with_weight": True, "with_residual_out_grad": False, "weight_grad_initialized": False},
            **{"out_scale": 1.0, "x_dtype": T.bfloat16, "weight_grad_dtype": T.float32, "num_sms": 132},
        },
        {**_N, **{f"{of}_stride": Size(4096, 2**16) for of in ("x", "out_grad", "residual_out_grad")}},
        ["x_grad", "weight_grad_partial", "weight_grad"],
    ),
    Entry(
        "tile_kernels.quant.swiglu_forward_cuda",
        "get_swiglu_forward_and_per_token_cast_kernel_cuda",
        {
            **{
                "hidden": 2048,
                "num_experts": 256,
                "alignment": 128,
                "with_weight": True,
                "with_routed_scaling": False,
            },
            **{"clamp_value": None, "count_clamp": False, "in_dtype": T.bfloat16, "out_config": _e4m3(1, 128)},
            "num_sms": 132,
        },
        {"num_expanded_tokens": ROWS, "sf_stride": Size(16, 2**16)},
        ["out", "out_sf"],
        {"psum_num_tokens_per_expert": Elements(low=0, high=2**30)},
    ),
    Entry(
        "tile_kernels.quant.swiglu_backward_cuda",
        "get_swiglu_backward_and_per_token_cast_kernel_cuda",
        {
            **{
                "hidden": 2048,
                "num_experts": 256,
                "alignment": 128,
                "with_weight": True,
                "with_routed_scaling": False,
            },
            **{"use_clamp": False, "x_dtype": T.bfloat16, "act_x_grad_dtype": T.bfloat16},
            "out_config": Made(_COMMON, "CastOutputConfig", {"torch_dtype": torch.bfloat16}),
        },
        {"num_expanded_tokens": ROWS, "sf_stride": Size(1, 2**16)},
        ["x_grad", "weight_grad"],
        {"psum_num_tokens_per_expert": Elements(low=0, high=2**30)},
    ),
)
