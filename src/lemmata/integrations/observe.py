"""Watching a model from outside: the operators it dispatches, the choices it makes, and what it computes in fp64."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of ``torch.ops.lemmata`` that reach torch's dispatcher, and notes the devices they ran on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.devices: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lemmata":
            op = func.overloadpacket.__name__.removesuffix("_fwd")
            self.calls[op] += 1
            self.devices[op] = next(a.device.type for a in args if isinstance(a, Tensor))
        return func(*args, **(kwargs or {}))


class Double(TorchFunctionMode):
    """Makes an fp64 model compute in fp64 where its code says fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Choices:
    """The experts and the compressed entries that a model picks, recorded in one run and kept to in others.

    A choice between near equals may fall either way by rounding alone, and moves every later logit by far more than
    rounding does. Runs that keep to the same choices can be compared; one that chooses the same anyway is not altered.
    """

    def __init__(self) -> None:
        self._recorded: defaultdict[str, list[Tensor]] = defaultdict(list)

    @contextmanager
    def record(self, model: nn.Module) -> Iterator[None]:
        """Record each choice made by ``model``, and the scores of the entries it chose among."""

        def hook(name: str, module: nn.Module, output: Any) -> None:
            self._recorded[name].append(_picked(output))

        with _watched(model, (*_CHOOSERS, _SCORER), hook):
            yield

    @contextmanager
    def keep(self, model: nn.Module) -> Iterator[Counter[str]]:
        """Hold ``model`` to the recorded choices.

        Yields how many rows were ``made``; how many of them ``tied``: other entries, of exactly the scores recorded for
        the kept ones; and how many ``differed`` otherwise.
        """
        rows: Counter[str] = Counter()
        pending = {name: iter(recorded) for name, recorded in self._recorded.items()}

        def hook(name: str, module: Any, output: Any) -> Any:
            own, kept = _picked(output), next(pending[name])
            scores = next(pending[f"{name}.scorer"]) if isinstance(output, Tensor) else None
            other = (own.sort(-1).values != kept.sort(-1).values).any(-1)
            tied = torch.zeros_like(other)
            if scores is not None:
                tied = other & (_of(scores, own) == _of(scores, kept)).all(-1)
            rows.update(made=other.numel() if own.shape[-1] else 0)
            rows.update(tied=int(tied.sum()), differed=int((other & ~tied).sum()))
            if not other.any():
                return None
            if isinstance(output, Tensor):
                return kept
            weights = module.score_fn(output[0]).gather(1, kept)
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            return output[0], weights * module.routed_scaling_factor, kept

        with _watched(model, _CHOOSERS, hook):
            yield rows


_CHOOSERS = "DeepseekV4Indexer", "DeepseekV4TopKRouter"
_SCORER = "DeepseekV4IndexerScorer"


def _picked(output: Any) -> Tensor:
    """Return the indices: all that an indexer returns, and the last of what a router returns."""
    picked: Tensor = output if isinstance(output, Tensor) else output[-1]
    return picked


def _of(scores: Tensor, picked: Tensor) -> Tensor:
    """Return the scores of the picked entries, in order; -1 picks none."""
    return torch.where(picked < 0, float("-inf"), scores.gather(-1, picked.clamp(min=0))).sort(-1).values


@contextmanager
def _watched(model: nn.Module, classes: tuple[str, ...], hook: Any) -> Iterator[None]:
    def watched(module: nn.Module) -> bool:
        return any(c.__name__ in classes for c in type(module).__mro__)

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: hook(name, module, output))
        for name, module in model.named_modules()
        if watched(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
