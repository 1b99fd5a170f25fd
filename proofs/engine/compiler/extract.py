"""The compiler's own IR of a kernel, however TileLang holds it, at the three levels that the proofs read. Needs no GPU.

* ``tile``: tile operations intact (copy, gemm, reduce, parallel loops), after simplification, before layout inference.
* ``thread``: explicit threads, layouts chosen, indices still one per dimension: the end of the CUDA prologue.
* ``device``: flat buffers, index widths final, shared memory merged into one arena, barriers placed: after the last
  ThreadSync. What remains after it (launch lowering, CUDA printing) is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from ..base.errors import Unsupported, UnsupportedVersion

try:
    import tilelang
    from tilelang.backend.target import determine_target
    from tilelang.engine.lower import create_backend_context, lower_to_host_device_ir
    from tilelang.jit import JITImpl, JITKernel
    from tvm.ir.instrument import pass_instrument
    from tvm.tirx import PrimFunc
except ImportError as error:  # another release keeps them elsewhere
    raise UnsupportedVersion("the proof engine reads tilelang 0.1.15: pip install 'lemmata[proofs]'") from error

Configs = Mapping[str, object] | None  # TileLang's pass configs, if there are any
VERSION = "0.1.15"
ARCH = "sm_90a"
STRICT = "tl.disable_safe_memory_legalize"  # without it the compiler's guards hide every index error

_ANNOTATED = "tilelang_pass_configs"  # what a kernel says of its own build; other pass configs come before these
_TILE, _THREAD, _DEVICE = "tl.CanonicalizeLegacyReducer", "tl.HoistNonRestrictParams", "tl.ThreadSync"


@dataclass(frozen=True)
class Lowered:
    """One kernel after one run of the compiler, at the three levels, and the host function that launches it.

    At the end of the run there is ``final``, of which CUDA is printed as ``build`` says: for a target, with options.
    """

    tile: PrimFunc
    thread: PrimFunc
    device: PrimFunc
    host: PrimFunc
    final: Any
    build: tuple[Any, Any, Mapping[str, Any]]


def require_tilelang() -> None:
    """Raise UnsupportedVersion, in one sentence, unless the installed TileLang is the one that the engine reads."""
    found = version("tilelang").split("+")[0]
    if found != VERSION:
        raise UnsupportedVersion(f"the proof engine reads the IR of tilelang {VERSION}, found {found}")


def shipped_with_guards(pass_configs: Configs) -> bool:
    """Return whether a build with these pass configs keeps the compiler's bounds guards."""
    return not plain(pass_configs).get(STRICT, False)


def prim_func(kernel: Any, statics: Mapping[str, float]) -> tuple[PrimFunc, dict[str, object]]:
    """Return the PrimFunc of a kernel and the pass configs that the kernel itself names.

    Args:
        kernel: a PrimFunc, a function decorated with ``@tilelang.jit``, or what calling that function returns.
        statics: values for the parameters of a decorated function, which leaves out those that it does not have.

    Raises:
        TypeError: the kernel is none of these, or a parameter of a decorated function has no value.
    """
    given: Mapping[str, object] = {}
    if isinstance(kernel, JITKernel):
        kernel, given = kernel.prim_func, kernel.pass_configs or {}
    elif isinstance(kernel, JITImpl):
        takes = kernel.signature.parameters
        lacking = [name for name, p in takes.items() if p.default is p.empty and name not in statics]
        if lacking:
            raise TypeError(f"kernel: expected values of {', '.join(lacking)} in statics, got {sorted(statics)}")
        named = {name: value for name, value in statics.items() if name in takes}
        kernel, given = kernel.get_tir(**named), kernel.pass_configs or {}
    if not isinstance(kernel, PrimFunc):
        raise TypeError(f"kernel: expected a PrimFunc or a @tilelang.jit function, got {type(kernel).__name__}")
    annotated = kernel.attrs.get(_ANNOTATED) if kernel.attrs else None
    return kernel, {**plain(annotated), **plain(given)}


def lower(prim_func: PrimFunc, *, guards: bool, pass_configs: Configs = None, arch: str = ARCH) -> Lowered:
    """Return a kernel lowered for ``arch`` under its own pass configs, but with bounds guards only if ``guards``.

    It launches one device function, or is Unsupported; UnsupportedVersion if the installed TileLang is another one.
    """
    configs = {**plain(pass_configs), STRICT: not guards}
    return _lower(prim_func, tuple(sorted(configs.items())), arch)


def plain(pass_configs: Mapping[Any, object] | None) -> dict[str, object]:
    """Return pass configs by names, given so or as members of ``tilelang.PassConfigKey``; ValueError if there are none such."""
    configs = {str(getattr(key, "value", key)): value for key, value in (pass_configs or {}).items()}
    try:
        tilelang.tvm.transform.PassContext(config=configs)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        text = str(error).split(" candidates are")[0]
        raise ValueError(f"pass_configs: {text}, got {configs}") from error
    return configs


@pass_instrument
class _Snapshots:
    """Keeps the module after each outermost pass, the last run of each by name."""

    def __init__(self) -> None:
        self.after: dict[str, object] = {}
        self._depth = 0

    def run_before_pass(self, module: object, info: object) -> None:
        self._depth += 1

    def run_after_pass(self, module: object, info: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.after[str(info.name)] = module  # type: ignore[attr-defined]


@lru_cache(maxsize=8)  # the layers ask for the same kernel in turn
def _lower(prim_func: PrimFunc, configs: tuple[tuple[str, object], ...], arch: str) -> Lowered:
    require_tilelang()
    target = determine_target({"kind": "cuda", "arch": arch}, return_object=True)
    snapshots = _Snapshots()
    backend = create_backend_context(target, None, "auto")
    options = {"opt_level": 3, "config": dict(configs)}
    with target, tilelang.tvm.transform.PassContext(**options, instruments=[snapshots]):
        host, final, *_ = lower_to_host_device_ir(prim_func, backend)

    tile, thread, device = (snapshots.after[name] for name in (_TILE, _THREAD, _DEVICE))
    levels = _only(tile), _only(thread), _only(device, "tirx.is_global_func"), _only(host)
    return Lowered(*levels, final, (target, backend, options))


def _only(module: object, attribute: str | None = None) -> PrimFunc:
    functions = [f for f in module.functions.values() if not attribute or attribute in (f.attrs or {})]  # type: ignore[attr-defined]
    if len(functions) != 1:
        raise Unsupported(f"a program of {len(functions)} device functions; expected one T.Kernel")
    return functions[0]
