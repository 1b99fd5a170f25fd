"""cuDNN Frontend's backward of sparse attention and of the indexer's scores on Hopper, given what lemmata is given.

It sums the gradients of keys by atomics, in an order that changes, and refuses to be deterministic on Hopper. Its backward of
sparse attention takes rows and lists as FlashMLA does, and no gradient of lse. Its backward of the indexer's scores is joined
to that of its loss: it takes the scores and a teacher's in place of an upstream gradient, makes the gradient of the scores
from both, and leaves it where the scores were. That is one pass over the scores more than lemmata's call makes.

From PyPI: ``nvidia-cudnn-frontend[cutedsl]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lemmata.bench.peers import Gradients, find

NAME, WITH_LOSS = "cuDNN Frontend", "cuDNN Frontend, with the loss's gradient"
_MODULE = "cudnn.deepseek_sparse_attention"


def found() -> bool:
    """Return whether cuDNN Frontend is installed and loads here."""
    return find(_MODULE) is not None


def attention_bwd(q: Tensor, rows: Tensor, lists: Tensor, sink: Tensor, scale: float, given: tuple[Tensor, ...]
                  ) -> Gradients:  # fmt: skip
    """Return the call that computes the gradients of sparse attention over one sequence.

    Args:
        q: [S, H, 512], bf16.
        rows: [R, 512], bf16; keys and values.
        lists: [S, n], int32: the rows of each query, -1 for none.
        sink: [H], fp32.
        scale: of the scores.
        given: the gradient of out [S, H, 512], bf16; out, likewise; lse [S, H], fp32, natural, without the sink.

    Returns:
        a call; the gradients of q, of rows and of sink.
    """
    peer: Any = find(_MODULE)
    dout, out, lse = given

    def call() -> tuple[Tensor, ...]:
        grads = peer.sparse_attention_backward_wrapper(q, rows, out, dout, lse, sink, lists, softmax_scale=scale)
        return grads["dq"], grads["dkv"], grads["d_sink"]

    return call


def indexer_bwd(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int, scores: Tensor) -> Gradients:
    """Return the call that computes the gradients of the indexer's scores under its loss, against an even teacher.

    Args:
        q: [B, S, H, 128], bf16.
        k: [B, T, 128], bf16.
        weights: [B, S, H], bf16.
        offset: [B], int32: the position of each sequence's first query.
        ratio: tokens of an entry.
        scores: [B, S, T], fp32; the call replaces them by their gradient.

    Returns:
        a call; the gradients of q, k and weights.
    """
    peer: Any = find(_MODULE)
    teacher, one = torch.ones_like(scores), torch.ones(1, device=q.device)
    norm, lse = scores.isfinite().sum(-1).float(), scores.logsumexp(-1).nan_to_num(neginf=0.0)

    def call() -> tuple[Tensor, ...]:
        grads = peer.dense_indexer_backward_wrapper(
            q, weights, k, teacher, norm, scores, lse, one, ratio=ratio, q_causal_offsets=offset
        )
        return grads["d_index_q"], grads["d_index_k"], grads["d_weights"]

    return call
