"""One public kernel: where its package has it, how it is built, and what may be assumed of a call."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from lemmata.proofs import verify
from lemmata.proofs.engine.base.report import Report
from lemmata.reference.contract import Contract, Elements, Size

ROWS = Size(1, 2**20)
"""How many tokens or rows a call has. Most launchers of these packages return early when there are none."""
H200 = SimpleNamespace(
    multi_processor_count=132,
    shared_memory_per_multiprocessor=228 * 1024,
    shared_memory_per_block_optin=227 * 1024,
)
"""What factories ask of the GPU that they build for."""


@dataclass(frozen=True)
class Made:
    """An argument that the package itself makes: a class of a module of its, and what the class is given."""

    module: str
    name: str
    arguments: Mapping[str, Any]


def _made(value: Any) -> Any:
    return (
        getattr(importlib.import_module(value.module), value.name)(**value.arguments)
        if isinstance(value, Made)
        else value
    )


@dataclass(frozen=True)
class Entry:
    """A kernel with its contract.

    Args:
        module: the module of the package that holds it.
        factory: the name of the function decorated with ``@tilelang.jit`` there.
        arguments: of the factory; tensors stand for dimensions that are fixed when the kernel is built.
        sizes: the sizes known at run time, strides among them.
        outputs: the names of the tensors that it writes.
        elements: what the elements of inputs may be, by name.
        relations: what holds between sizes.
        updated: the names of tensors that it writes in part.
        probes: sizes that the contract must admit; by default ragged ones and the largest.
        judged: what is to be said of a refutation, in words: what is truly wrong, or that it is a false alarm.
    """

    module: str
    factory: str
    arguments: Mapping[str, Any]
    sizes: Mapping[str, Size]
    outputs: Collection[str]
    elements: Mapping[str, Elements] = field(default_factory=dict)
    relations: tuple[str, ...] = ()
    updated: Collection[str] = ()
    probes: tuple[Mapping[str, int], ...] = ()
    judged: str = ""

    @property
    def lines(self) -> int:
        """How many lines the contract takes: one for each size, output, range of elements, relation and probe."""
        stated = (self.sizes, self.outputs, self.elements, self.relations, self.updated, self.probes)
        return sum(map(len, stated))

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.module}:{self.factory}"

    def prove(self, folders: Iterable[Path], layers: Iterable[str]) -> Report:
        """Return the verdict of some layers.

        Args:
            folders: where packages are unpacked, beside those that are installed.
            layers: "L0", "L1" or both.
        """
        with _built_for_h200(folders):
            factory = getattr(importlib.import_module(self.module), self.factory)
            kernel = factory.get_tir(**{name: _made(value) for name, value in self.arguments.items()})
        contract = Contract.of(
            kernel,
            sizes=self.sizes,
            outputs=self.outputs,
            elements=self.elements,
            relations=self.relations,
            updated=self.updated,
            probes=self.probes,
        )
        return verify(kernel, contract, layers=layers, pass_configs=factory.pass_configs or {})


@contextmanager
def _built_for_h200(folders: Iterable[Path]) -> Iterator[None]:
    """Let packages be importable without what their ``__init__`` files ask for, and their GPU be an H200."""
    import tilelang

    finder = _Parents([*folders, *map(Path, sys.path)])
    sys.meta_path.insert(0, finder)
    shim = ModuleType("shim of TileLang")
    shim.T, shim.tilelang = tilelang.language, tilelang  # type: ignore[attr-defined]
    with (
        patch.dict(sys.modules, dict.fromkeys(SHIMS, shim)),
        patch.object(torch.cuda, "get_device_properties", lambda *_: H200),
        patch.object(torch.cuda, "current_device", lambda: 0),
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)),
    ):
        yield
    sys.meta_path.remove(finder)


PACKAGES = ("tile_kernels", "nemo_automodel", "veomni")
SHIMS = tuple(f"nemo_automodel.components.models.{model}.kernels._tilelang" for model in ("deepseek_v4", "glm_moe_dsa"))
"""Modules that put off the import of TileLang, which is there."""


class _Parents:
    """Finds the folders of the packages as modules that have nothing in them but their submodules."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a package without its ``__init__``; None of other modules, which are found as usual."""
        if name.partition(".")[0] not in PACKAGES:
            return None
        places = [str(place) for f in self._folders if (place := f.joinpath(*name.split("."))).is_dir()]
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = places
        return spec if places else None
