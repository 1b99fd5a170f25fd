"""What is claimed of the kernels of the indexer's loss over listed entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.indexer_loss import Config, loss_student, loss_teacher
from ..kernels.indexer_loss_backward import loss_bwd_listed
from ..kernels.indexer_loss_rows import Config as RowConfig
from ..kernels.indexer_loss_rows import loss_rows, loss_scores_bwd
from ..reference.attention import BF16, F32
from ..reference.contract import Contract, Static, TensorSpec
from ..reference.indexer_loss import LISTED
from .suite import Proof

_BLOCKS = Static(int, 1, 2)
_MASSES = TensorSpec("log_mass", "B S blocks K", (F32,))
_SCORES = TensorSpec("scores", "B S 1 K", (F32,))
_GRAD_SCORES = TensorSpec("grad_scores", "B S K", (F32,))
_ROW_SIZES = {name: LISTED.sizes[name] for name in "BSK"}
_ROW_PROBES = tuple({name: probe[name] for name in "BSK"} for probe in LISTED.probes)


def _part(op: str, names: tuple[str, ...], statics: dict[str, Static], *outputs: TensorSpec) -> Contract:
    """Return the contract of a kernel that reads some of the inputs of the loss, or gradients of scores before them."""
    known = {spec.name: spec for spec in (_GRAD_SCORES, *LISTED.inputs)}
    return replace(LISTED, op=op, statics=statics, inputs=tuple(known[name] for name in names), outputs=outputs)


_OF_CORE = {name: LISTED.statics[name] for name in ("core_H", "core_D", "scale")}
_OF_INDEXER = {name: LISTED.statics[name] for name in "HD"}
TEACHER = _part(
    "loss_teacher",
    ("core_q", "compressed_kv", "indices", "sink", "lse"),
    {**_OF_CORE, "blocks": _BLOCKS},
    _MASSES,
)
STUDENT = _part("loss_student", ("q", "k", "weights", "indices"), _OF_INDEXER, _SCORES)
GRADIENTS = _part(
    "loss_bwd_listed",
    ("grad_scores", "q", "k", "weights", "indices"),
    _OF_INDEXER,
    TensorSpec("grad_q", "B S H D", (BF16,)),
    TensorSpec("grad_weights", "B S H", (F32,)),
    TensorSpec("parts", "B S K 1 D", (BF16,)),
)
ROWS = Contract(
    "loss_rows",
    _ROW_SIZES,
    {"blocks": _BLOCKS},
    (_MASSES, _SCORES),
    LISTED.outputs,
    _ROW_PROBES,
)
ROWS_BWD = replace(
    ROWS,
    op="loss_scores_bwd",
    inputs=(TensorSpec("grad_out", "B S", (F32,)), _MASSES, _SCORES),
    outputs=(_GRAD_SCORES,),
)


def _proof(factory: Any, cfg: Any, contract: Contract, **more: Any) -> Proof:
    of = {"core_H": "H", "core_D": "D", "blocks": "blocks" if isinstance(cfg, RowConfig) else "head_blocks"}
    given = {name: getattr(cfg, of.get(name, name)) for name in contract.statics}
    return Proof("indexer_loss", factory(cfg), contract, given, more.pop("compare", None), PASS_CONFIGS, **more)


def proofs() -> Iterator[Proof]:
    """Yield the kernels of DeepSeek-V4's sizes."""
    scale = 512**-0.5
    for heads in (64, 128):
        yield _proof(loss_teacher, Config(heads, 512, scale), TEACHER)
    yield _proof(loss_student, Config(), STUDENT)
    for blocks in (1, 2):
        yield _proof(loss_rows, RowConfig(blocks), ROWS)
        yield _proof(loss_scores_bwd, RowConfig(blocks), ROWS_BWD)
    yield _proof(loss_bwd_listed, Config(), GRADIENTS)
