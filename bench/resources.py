"""What nvcc makes of a kernel: registers, spills, shared memory, PTX. Needs no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tilelang
from tilelang import tvm
from tilelang.backend.target import determine_target
from tilelang.engine.lower import lower


@dataclass(frozen=True)
class Resources:
    """The resource report of one kernel, per thread but for the shared memory."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


def nvcc() -> Path:
    """Return the machine's nvcc, or the one of the wheel nvidia-cuda-nvcc."""
    wheel = Path(sysconfig.get_paths()["purelib"], "nvidia", "cu13", "bin", "nvcc")
    found = shutil.which("nvcc") or (str(wheel) if wheel.exists() else None)
    if found is None:
        raise FileNotFoundError("nvcc: expected it on the PATH or from pip install nvidia-cuda-nvcc, got neither")
    return Path(found)


def cuda_source(prim_func: Any, pass_configs: Mapping[str, Any]) -> str:
    """Return the CUDA that TileLang generates for sm_90a."""
    target = determine_target({"kind": "cuda", "arch": "sm_90a"}, return_object=True)
    with target, tvm.transform.PassContext(opt_level=3, config=dict(pass_configs)):
        source: str = lower(prim_func, target=target).kernel_source
    return source


def tile_operations(source: str) -> set[str]:
    """Return the matrix products and asynchronous copies in the CUDA that TileLang generates, as ``wgmma_ss kBFloat16``.

    Products name the type of their factors, copies the bytes of each; ``cp_async_wait`` how many groups of copies may be
    under way behind it, at most.
    """
    products = re.findall(r"tl::(\w*mma_\w+)<tl::DataType::(\w+), tl::DataType::(\w+)", source)
    copies = re.findall(r"tl::(cp_async_gs)(?:_conditional)?<(\d+)>|tl::(tma_load)\b", source)
    waits = [int(groups) for groups in re.findall(r"tl::cp_async_wait<(\d+)>", source)]
    found = {f"{name} {' '.join(sorted({a, b}))}" for name, a, b in products}
    found |= {" ".join(filter(None, copy)) for copy in copies}
    return found | ({f"cp_async_wait {max(waits)}"} if waits else set())


def resources(sources: Mapping[str, str]) -> dict[str, Resources]:
    """Compile kernels for sm_90a, all at once since the headers take most of the time, and read ptxas's report."""
    preludes: dict[str, None] = {}  # what kernels declare before they include anything: many declare the same
    text = []
    for at, source in enumerate(sources.values()):
        preludes[source[: source.index("#")]] = None
        entry = re.search(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(', source)
        if entry is None:
            raise ValueError(f"sources: expected a kernel, got {source[-200:]!r}")
        text.append(re.sub(rf"\b{entry[1]}\b", f"kernel_{at}", source[source.index("#") :]))
    flags = ["-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v"]
    _, said = _made("\n".join([*preludes, *text]), "cubin", flags)
    report = read_report(said)
    return {name: report[f"kernel_{at}"] for at, name in enumerate(sources)}


def ptx(source: str) -> str:
    """Return the PTX that nvcc makes of a kernel, under the flags of TileLang's own builds."""
    made, _ = _made(source, "ptx", ["-std=c++20", "-O3", "-lineinfo", "-arch=sm_90a"])
    return made.decode()


def _made(source: str, form: str, flags: Sequence[str]) -> tuple[bytes, str]:
    """Return what nvcc makes of a text in a form, cubin or ptx, and what it says."""
    headers = Path(tilelang.__file__).parent
    includes = [f"-I{headers / 'src'}", f"-I{headers / '3rdparty/cutlass/include'}"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernels.cu")
        file.write_text(source)
        made = file.with_suffix(f".{form}")
        command = [str(nvcc()), *flags, f"-{form}", *includes, str(file), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nvcc failed: {done.stderr.strip().splitlines()[-1]}")
        return made.read_bytes(), done.stderr


def read_report(report: str) -> dict[str, Resources]:
    """Return the figures in what ``ptxas -v`` prints, by kernel."""
    found = {}
    for name, body in re.findall(r"entry function '(\w+)'(.*?)(?=entry function|\Z)", report, re.DOTALL):
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", body)
        registers = re.search(r"Used (\d+) registers", body)
        if memory and registers:
            found[name] = Resources(int(registers[1]), *(int(n) for n in memory.groups()))
    if not found:
        raise ValueError(f"report: expected the output of ptxas -v, got {report[-200:]!r}")
    return found
