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
        """Record each choice made by ``model``."""

        def hook(name: str, router: nn.Module, output: Any) -> None:
            self._recorded[name].append(_picked(output))

        with _watched(model, hook):
            yield

    @contextmanager
    def keep(self, model: nn.Module) -> Iterator[Counter[str]]:
        """Hold ``model`` to the recorded choices; yields how many rows were ``made`` and how many ``differed``."""
        rows: Counter[str] = Counter()
        pending = {name: iter(picks) for name, picks in self._recorded.items()}

        def hook(name: str, router: Any, output: Any) -> Any:
            own, kept = _picked(output), next(pending[name])
            differed = (own.sort(-1).values != kept.sort(-1).values).any(-1).sum().item()
            rows.update(made=own[..., 0].numel() if own.shape[-1] else 0, differed=int(differed))
            if not differed:
                return None
            if isinstance(output, Tensor):
                return kept
            scores = router.score_fn(output[0]).gather(1, kept)
            weights = scores / (scores.sum(-1, keepdim=True) + 1e-20)
            return output[0], weights * router.routed_scaling_factor, kept

        with _watched(model, hook):
            yield rows


def _picked(output: Any) -> Tensor:
    """The indices: all that an indexer returns, and the last of what a router returns."""
    picked: Tensor = output if isinstance(output, Tensor) else output[-1]
    return picked


@contextmanager
def _watched(model: nn.Module, hook: Any) -> Iterator[None]:
    def choosing(module: nn.Module) -> bool:
        return any(c.__name__ in ("DeepseekV4Indexer", "DeepseekV4TopKRouter") for c in type(module).__mro__)

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: hook(name, module, output))
        for name, module in model.named_modules()
        if choosing(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
