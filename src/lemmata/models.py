"""The sizes of a model that decide which kernels its calls launch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Model(NamedTuple):
    """What a model's layers have in common, those of DeepSeek-V4 Flash by default.

    Attributes:
        heads, head_dim, window: of the attention.
        csa_ratio, hca_ratio: how many tokens make an entry, in layers of each kind.
        index_heads, index_dim, topk: of the indexer: its heads, their width, and how many entries it selects.
        streams, hidden, iterations, eps, norm_eps: of the hyper-connections: how many streams, how wide they are, their
            Sinkhorn normalisation, and the eps of the norm before them.
    """

    heads: int = 64
    head_dim: int = 512
    window: int = 128
    csa_ratio: int = 4
    hca_ratio: int = 128
    index_heads: int = 64
    index_dim: int = 128
    topk: int = 512
    streams: int = 4
    hidden: int = 4096
    iterations: int = 20
    eps: float = 1e-6
    norm_eps: float = 1e-6

    @property
    def scale(self) -> float:
        """Return the factor of the attention's logits."""
        return float(self.head_dim**-0.5)


DEEPSEEK_V4 = Model(), Model(heads=128, topk=1024, hidden=7168)
"""Flash and Pro."""

_NAMES = {
    "num_attention_heads": "heads",
    "head_dim": "head_dim",
    "sliding_window": "window",
    "index_n_heads": "index_heads",
    "index_head_dim": "index_dim",
    "index_topk": "topk",
    "hc_mult": "streams",
    "hidden_size": "hidden",
    "hc_sinkhorn_iters": "iterations",
    "hc_eps": "eps",
    "rms_norm_eps": "norm_eps",
}


def read(path: Path) -> Model:
    """Return the sizes in a model's ``config.json``, as transformers writes it or as the released weights have it.

    What the file does not name is as in DeepSeek-V4 Flash.

    Raises:
        ValueError: the file holds no JSON object, no model of this kind, or sizes that the operators do not take.
    """
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected a model's config as JSON, got {error}") from error
    if not isinstance(config, dict) or not _NAMES.keys() & config.keys():
        raise ValueError(f"{path}: expected a model's config that names {', '.join(_NAMES)}, got none of them")
    sizes = {field: config[name] for name, field in _NAMES.items() if name in config} | dict(_ratios(path, config))
    model = Model(**sizes)
    for message in _refused(model):
        raise ValueError(f"{path}: {message}")
    return model


def _ratios(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield how many tokens make an entry, from a mapping by kind of layer, or from a list by layer, 0 where there are none."""
    rates = config.get("compress_rates") or config.get("compress_ratios")
    if isinstance(rates, dict):
        for kind, field in (
            ("compressed_sparse_attention", "csa_ratio"),
            ("heavily_compressed_attention", "hca_ratio"),
        ):
            if kind in rates:
                yield field, rates[kind]
    elif isinstance(rates, list) and any(rates):
        yield "csa_ratio", min(filter(None, rates))
        yield "hca_ratio", max(rates)
    elif rates is not None:
        raise ValueError(f"{path}: compress_ratios: expected ratios by layer or by kind of layer, got {rates!r}")


def _refused(model: Model) -> Iterator[str]:
    """Yield what the contracts of the operators say against the sizes."""
    from .reference.hca import HCA
    from .reference.indexer import SELECT
    from .reference.mhc import MHC_PRE
    from .reference.sinkhorn import FORWARD

    limits = {
        "heads": HCA.statics["H"],
        "head_dim": HCA.statics["D"],
        "window": HCA.statics["window"],
        "csa_ratio": HCA.statics["ratio"],
        "hca_ratio": HCA.statics["ratio"],
        "index_heads": SELECT.statics["H"],
        "index_dim": SELECT.statics["D"],
        "topk": SELECT.statics["topk"],
        "streams": FORWARD.statics["n"],
        "hidden": MHC_PRE.statics["hidden"],
        "iterations": FORWARD.statics["iterations"],
        "eps": FORWARD.statics["eps"],
        "norm_eps": MHC_PRE.statics["norm_eps"],
    }
    for name, limit in limits.items():
        try:
            limit.check(name, getattr(model, name))
        except (TypeError, ValueError) as error:
            yield str(error)
