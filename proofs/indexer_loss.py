"""What is claimed of the kernels of the indexer's loss over listed entries.

Every layer of all of them. That ``loss_teacher`` and ``loss_student`` write the logarithms and the scores of the reference is
compared here; the loss of each query and the gradient of its scores in proofs/indexer_loss_rows.py; what follows from that
gradient in proofs/indexer_loss_backward.py and proofs/gradient_sums.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.gradient_sums import Config as SumConfig
from ..kernels.indexer_loss import Config, loss_student, loss_teacher
from ..kernels.indexer_loss_backward import loss_bwd_listed
from ..kernels.indexer_loss_rows import Config as RowConfig
from ..kernels.indexer_loss_rows import loss_rows, loss_scores_bwd
from ..kernels.sparse_attention_config import KEYS as HALF
from ..reference import csa
from ..reference import indexer_loss as reference
from ..reference.attention import BF16, F32
from ..reference.contract import Contract, Static, TensorSpec
from ..reference.indexer_loss import LISTED
from . import indexer_loss_backward as gradients
from . import indexer_loss_rows as rows
from .accepted import ASKED
from .attention import inputs
from .engine.execution.symbolic import execute
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.reference.pull_array import deciding
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.verify import Compare, Compared
from .gradient_sums import EQUIVALENTS as OF_SUMS
from .gradient_sums import listed
from .listed_rows import CASES, LOOP, TILE, Block
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


def _reduced(at: Block, contract: Contract, sizes: Any, wanted: Callable[..., SymbolicTensor]) -> Compare:
    """Return the comparison of a kernel of the loop over tiles with what it writes for each slot."""

    def compared(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.splitting(2))
            stack.enter_context(nf.tiled(TILE, HALF))
            done = execute(kernel, invariants={LOOP: at.invariant()}, facts=known)
            equations = list(done.equations)
            if all(equation.holds for equation in equations):
                given = inputs(sizes, contract)
                written_out = nf.replacing("key", at.key)
                for case in CASES:
                    with known.assuming(case), deciding(known):
                        result = tensor(wanted(*given.values()))
                        equations += done.compare(contract.outputs[0].name, result.value, written_out)
            return done, equations

    return compared


def _scores(q: Any, k: Any, weights: Any, indices: Any) -> Any:
    return reference.scores_of(q, weights, csa._selected(k, indices)).unsqueeze(2)


def _masses(cfg: Config) -> Callable[..., Any]:
    def masses(core_q: Any, compressed_kv: Any, indices: Any, sink: Any, lse: Any) -> Any:
        entries = csa._selected(compressed_kv, indices)
        return reference.log_masses(core_q, entries, sink, lse, cfg.scale, cfg.head_blocks)

    return masses


def of_teacher(cfg: Config) -> Compare:
    """Return the comparison of the teacher's kernel with the logarithms in the reference, of each block of heads."""
    sizes = SimpleNamespace(core_H=cfg.H, core_D=cfg.D, blocks=cfg.head_blocks)
    return _reduced(Block("compressed_kv", cfg.head_blocks), TEACHER, sizes, _masses(cfg))


def of_student(cfg: Config) -> Compare:
    """Return the comparison of the student's kernel with the scores in the reference."""
    return _reduced(Block("k"), STUDENT, cfg, _scores)


def _proof(factory: Any, cfg: Any, contract: Contract, **more: Any) -> Proof:
    of = {"core_H": "H", "core_D": "D", "blocks": "blocks" if isinstance(cfg, RowConfig) else "head_blocks"}
    given = {name: getattr(cfg, of.get(name, name)) for name in contract.statics}
    return Proof("indexer_loss", factory(cfg), contract, given, more.pop("compare", None), PASS_CONFIGS, **more)


CANCELS = "what is subtracted cancels: any start is as good that is below all that is compared"
FINITE = "the claim is of a finite lse: then some product is above -inf, and what is subtracted cancels"
FENCED = "the fence in the loop lies between the same wait and the first product"
_LARGEST = 'T.reduce(T.region(dots0[0, 0], 1, 64, 64), T.region(largest0[0], 2, 64), "max", 1, T.bool({}))'
_STARTS = ("largest1[0], 2, 64", "high_i[0], 2, 1")
EQUIVALENTS = {
    **{
        f"constant @ T.fill(T.region({start}), -1.2676506e+30) -> T.fill(T.region({start}), -2.5353012e+30)": CANCELS
        for start in _STARTS
    },
    f"flag @ {_LARGEST.format(False)} -> {_LARGEST.format(True)}": FINITE,
    "dropped statement @ T.fence_proxy_async(), occurrence 2": FENCED,
    'dropped statement @ T.warpgroup_fence_operand("float32", dots1, 0, 32)': ASKED,
    'other operator @ T.infinity("float32") * -1 -> T.infinity("float32") / -1': "the same infinity",
}


def proofs() -> Iterator[Proof]:
    """Yield the kernels of DeepSeek-V4's sizes."""
    scale = 512**-0.5
    tried: dict[str, Any] = {"mutate": True, "every": 8, "equivalents": EQUIVALENTS}
    for heads, more in ((64, tried), (128, {})):
        core = Config(heads, 512, scale)
        yield _proof(loss_teacher, core, TEACHER, compare=of_teacher(core), **more)
    yield _proof(loss_student, Config(), STUDENT, compare=of_student(Config()), **tried)
    for blocks in (1, 2):
        row, more = RowConfig(blocks), {**tried, "every": 12} if blocks == 2 else {}
        of_loss, of_scores = rows.compare(row, ROWS, rows.losses), rows.compare(row, ROWS_BWD, rows.gradients)
        yield _proof(loss_rows, row, ROWS, compare=of_loss, waivers=(rows.LOSS_WAIVER,), **more)
        yield _proof(loss_scores_bwd, row, ROWS_BWD, compare=of_scores, waivers=(rows.GRADIENT_WAIVER,), **more)
    yield _proof(loss_bwd_listed, Config(), GRADIENTS, compare=gradients.compare(Config(), GRADIENTS), **tried)
    yield listed("indexer_loss", SumConfig(Config().D), **{**tried, "every": 2, "equivalents": OF_SUMS})
