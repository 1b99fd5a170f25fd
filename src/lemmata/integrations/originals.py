"""Whether the functions of transformers that the swaps replace still are what the swaps were written against.

A function is known by what it says: its syntax tree, without comments, annotations and docstrings, hashed. So a release
that alters one is noticed by what its modules look like, whatever its number, and so is a function that someone put in
the place of one, as Liger, unsloth and axolotl do.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from .fingerprints import FUNCTIONS, RELEASES

_LIBRARIES = ("transformers", "torch")  # whose decorators may stand around a function

_CACHE = "DeepseekV4HCACache.update", "DeepseekV4HCACache.store_compression_weights"
_ENTRIES = *_CACHE, "DeepseekV4HCACache.update_compressor_states", "DeepseekV4CSACache.update_overlap_state"
_COMPRESSORS = "DeepseekV4CSACompressor.forward", "DeepseekV4HCACompressor.forward"
ORIGINALS = {
    "mhc_pre": ("DeepseekV4HyperConnection.forward", "DeepseekV4UnweightedRMSNorm.forward"),
    "mhc_post": ("DeepseekV4DecoderLayer.forward",),
    "mhc_head": ("DeepseekV4HyperHead.forward", "DeepseekV4UnweightedRMSNorm.forward"),
    "compressor": (*_COMPRESSORS, "DeepseekV4RMSNorm.forward", "apply_rotary_pos_emb", *_ENTRIES),
    "indexer": (
        "DeepseekV4Indexer.forward",
        "DeepseekV4IndexerScorer.forward",
        "DeepseekV4RMSNorm.forward",
        "apply_rotary_pos_emb",
        *_ENTRIES,
    ),
    "attention": (
        "DeepseekV4Attention.forward",
        "eager_attention_forward",
        "repeat_kv",
        *_COMPRESSORS,
        "apply_rotary_pos_emb",
        *_ENTRIES,
    ),
    "mask": ("DeepseekV4Model.forward",),
}
"""The functions that each swap replaces or repeats."""


class UnknownVersionError(RuntimeError):
    """The installed transformers is not one that the swaps were written against."""


def modeling() -> ModuleType:
    """Return transformers' module of DeepSeek-V4."""
    from transformers.models.deepseek_v4 import modeling_deepseek_v4

    return modeling_deepseek_v4  # type: ignore[no-any-return]


def fingerprint(function: ast.AST) -> str:
    """Return the hash of what a function's syntax tree says."""
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef):
            node.returns, node.decorator_list = None, []
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            node.annotation = ast.Constant(None)
    return hashlib.sha256(ast.unparse(function).encode()).hexdigest()[:16]


def fingerprints(source: str, originals: Mapping[str, tuple[str, ...]] = ORIGINALS) -> dict[str, str]:
    """Return the fingerprint of each of the originals that is in the text of a module."""
    wanted = {name for names in originals.values() for name in names}
    found = {}
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in inner:
            if isinstance(function, ast.FunctionDef) and prefix + function.name in wanted:
                found[prefix + function.name] = fingerprint(function)
    return found


@functools.lru_cache(maxsize=512)
def from_a_library(function: Any, libraries: tuple[str, ...] = _LIBRARIES) -> bool:
    """Return whether these libraries wrote the function and everything around it."""
    roots = [Path(importlib.import_module(name).__file__ or "").parent for name in libraries]
    layers = [function]
    while hasattr(layers[-1], "__wrapped__"):
        layers.append(layers[-1].__wrapped__)
    codes = [getattr(layer, "__code__", None) for layer in layers]
    return all(
        isinstance(code, CodeType) and any(Path(code.co_filename).is_relative_to(root) for root in roots)
        for code in codes
    )


@functools.lru_cache(maxsize=512)
def _state(known: tuple[str, ...], libraries: tuple[str, ...], function: Any, _: CodeType | None) -> str:
    """Return "known", "patched" (by none of the libraries) or "unknown" (by another release)."""
    if not from_a_library(function, libraries):
        return "patched"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    except (OSError, SyntaxError, TypeError):
        return "patched"
    return "known" if fingerprint(tree) in known else "unknown"


def state(
    name: str,
    function: Any,
    functions: Mapping[str, tuple[str, ...]] | None = None,
    libraries: tuple[str, ...] = _LIBRARIES,
) -> str:
    """Return what is known of the function that stands in the place of the named one; looked at once.

    ``functions`` are the fingerprints known, by default those of transformers.
    """
    known = (FUNCTIONS if functions is None else functions)[name]
    return _state(known, libraries, function, getattr(function, "__code__", None))


def named(name: str) -> Any:
    """Return the function that stands under this name now: a module's function, or a method of a class in it."""
    return functools.reduce(getattr, name.split("."), modeling())


_INSTALL = ": pip install 'lemmata[hf]'"  # which takes a release that is known


def check_version(swaps: tuple[str, ...] = tuple(ORIGINALS)) -> None:
    """Raise `UnknownVersionError`, in one line, unless each function that these swaps replace is a known one.

    A function that was patched is no matter of the version: the module that it belongs to runs as it is.
    """
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        raise UnknownVersionError(f"transformers: expected it installed, got none{_INSTALL}") from None
    try:
        modeling()
    except ModuleNotFoundError:
        words = f"transformers: expected a version with DeepSeek-V4, got {installed}{_INSTALL}"
        raise UnknownVersionError(words) from None
    unknown = [n for swap in swaps for n in ORIGINALS[swap] if not _exists(n) or state(n, named(n)) == "unknown"]
    if unknown:
        raise UnknownVersionError(
            f"transformers: expected the {unknown[0]} of a version from {RELEASES[0]} to {RELEASES[-1]}, "
            f"got another in {installed}{_INSTALL}"
        )


def _exists(name: str) -> bool:
    try:
        named(name)
    except AttributeError:
        return False
    return True


def patched(*functions: tuple[str, Callable[..., Any]]) -> str | None:
    """Return which of these functions, each beside the name it has in transformers, is not transformers' own."""
    for name, function in functions:
        if state(name, function) != "known":
            return f"{name} is patched"
    return None
