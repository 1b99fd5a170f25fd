"""The operators' records."""

from __future__ import annotations

from specs_attention import CSA, HCA
from specs_indexer import INDEXER_SCORES, INDEXER_SCORES_FP8, INDEXER_TOPK
from specs_sinkhorn import SINKHORN
from specs_topk import TOPK, TOPK_BF16

SPECS = (SINKHORN, INDEXER_SCORES, INDEXER_SCORES_FP8, TOPK, TOPK_BF16, INDEXER_TOPK, CSA, HCA)
DIFFERENTIABLE = tuple(spec for spec in SPECS if spec.differentiable)
