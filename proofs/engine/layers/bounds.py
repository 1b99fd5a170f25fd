"""Layer 0: every access in bounds, no integer operation wraps, and the launch fits the device.

The kernel is read at two levels, because each hides something. At thread level there still is an index for each
dimension; a flat index may be in range and in the wrong row. At device level the widths of the integers and the layout
of shared memory are final.

The thread level is read twice: *strict*, with the compiler's bounds guards switched off, and *final*, as shipped.
The strict reading shows that the kernel's own indices are right; the compiler's guards would make any index look right.
"""

from __future__ import annotations

from dataclasses import replace

import z3
from tvm import tirx
from tvm.ir import structural_equal
from tvm.tirx import PrimFunc

from ..access.sites import can_happen
from ..access.trace import Access, Trace
from ..access.walk import walk
from ..base.conditions import Analysis, Condition, Site, distinct
from ..base.dtypes import span
from ..base.errors import Unsupported
from ..base.text import brief
from ..compiler import extract
from ..compiler.extract import ARCH, Configs
from ..compiler.nodes import nodes
from ..contract.hypotheses import Hypotheses
from .row_major import Digit, Quotient, digits, quotients

_LEAST_AND_MOST = {
    **{"blockIdx.x": (0, 2**31 - 1), "blockIdx.y": (0, 65535), "blockIdx.z": (0, 65535)},
    **{"threadIdx.x": (1, 1024), "threadIdx.y": (1, 1024), "threadIdx.z": (1, 64)},
}
_THREADS = 1024
_WARPGROUP = 128
OWN = "own bounds"  # what the kernel's own guards show; where they do not, those of the compiler may
_STATIC_SHARED = 48 * 1024
_SHARED = {"sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}  # KiB


def bounds(prim_func: PrimFunc, hypotheses: Hypotheses, pass_configs: Configs = None, arch: str = ARCH) -> Analysis:
    """Return the conditions of layer 0.

    Their kinds are "bounds", "overflow", "division", "cast", "launch", "value" for what is stored to an output whose
    elements the contract bounds, and "assume" for what the kernel assumes of its sizes. Where the compiler adds guards
    at thread level, "own bounds" are those of the strict reading, "guarded bounds" those of the final one.

    Loads and stores to global, shared and private memory are modelled, and what intrinsics reach through pointers, as
    far as the compiler states its extent. What intrinsics do beyond that is not modelled, and is listed. An empty grid
    is not launched, so the extents of the grid may be zero. A float cast to an integer must lie between constants. What
    else the kernel uses that is not modelled is Unsupported.
    """
    shipped = extract.shipped_with_guards(pass_configs)
    strict = extract.lower(prim_func, guards=False, pass_configs=pass_configs, arch=arch)
    final = extract.lower(prim_func, guards=True, pass_configs=pass_configs, arch=arch) if shipped else strict
    trace = walk(strict.thread, hypotheses)
    guarded_too = shipped and not structural_equal(strict.thread, final.thread)
    conditions, sites = _accesses(OWN if guarded_too else "bounds", trace, hypotheses)
    if guarded_too:
        guarded, more = _accesses("guarded bounds", walk(final.thread, hypotheses), hypotheses)
        conditions, sites = conditions + guarded, sites + more
    device = walk(final.device, hypotheses)
    flat, more = _accesses("bounds", device, hypotheses)
    met = (replace(c, hypotheses=(*hypotheses.facts, *c.hypotheses)) for c in device.obligations)
    conditions += [*flat, *met]
    for node in (n for n in nodes(final.host.body) if isinstance(n, tirx.Bind) and n.var.name in hypotheses.sizes):
        size, name, dtype = hypotheses.sizes[node.var.name], node.var.name, str(node.var.dtype)
        statement = f"{name} fits {dtype}, to which the launcher narrows it"  # unchecked, from 64 bits
        goal, site = z3.And(size >= 0, size <= span(dtype)[1]), Site(f"{name} = {node.value}".splitlines()[-1])
        conditions.append(Condition("cast", statement, hypotheses.facts, goal, site))
    # where TMA stores to is told by descriptors, which lowering takes out of the kernel
    for access in (a for a in (*trace.accesses, *device.accesses) if a.intrinsic and a.region.scope == "global"):
        if hypotheses.promises.get(access.region.allocation, (None, None)) != (None, None):
            statement = f"what {access.intrinsic} stores to {access.region.name} is in the range of the contract"
            given = (*hypotheses.facts, *access.context.path)
            conditions.append(Condition("value", statement, given, z3.BoolVal(False), access.context.site))
    conditions += _launch(device, hypotheses, arch)
    return Analysis(distinct(conditions), trace.unmodelled | device.unmodelled, distinct(sites + more))


def _accesses(kind: str, trace: Trace, hypotheses: Hypotheses) -> tuple[list[Condition], list[Condition]]:
    conditions = []
    for access in trace.accesses:
        hypothesis = (*hypotheses.facts, *access.context.path)
        region, site = access.region, access.context.site
        extents = _extents(access, hypotheses)
        if len(extents) == 1 and region.allocation in hypotheses.shapes:
            strides = hypotheses.strides.get(region.allocation)
            hypothesis += _of_digits(list(digits(access.indices[0], hypotheses.shapes[region.allocation], strides)))
        for number, (index, extent) in enumerate(zip(access.indices, extents, strict=True)):
            goal = z3.And(index >= 0, index < extent)
            dimension = f", dimension {number}" if len(extents) > 1 else ""
            statement = f"{access}{dimension}: 0 <= {brief(index)} < {brief(extent)}"
            conditions.append(Condition(kind, statement, hypothesis, goal, site))
        if region.allocation in trace.shared_bytes and region.offset:
            end = region.offset + (access.indices[-1] + 1) * (region.bits // 8)
            goal = end <= trace.shared_bytes[region.allocation]
            conditions.append(Condition(kind, f"{access}: inside {region.allocation}", hypothesis, goal, site))
    open_conditions = [c for c in conditions if not z3.is_true(z3.simplify(c.goal))]
    return open_conditions, [can_happen(a, hypotheses) for a in trace.accesses]


def _of_digits(found: list[Digit]) -> tuple[z3.BoolRef, ...]:
    """Return what helps the solvers with the digits of a flat index, none of which they see by themselves."""
    return *(grows(digit) for digit in found if digit.scaled), *map(rounds_down, quotients(found))


def grows(digit: Digit) -> z3.BoolRef:
    """Return that a product grows with its first factor, which holds of any integers whose second is not negative."""
    value, last, stride = digit
    return z3.Implies(z3.And(stride >= 0, value <= last), value * stride <= last * stride)


def rounds_down(quotient: Quotient) -> z3.BoolRef:
    """Return that a quotient is at most what it is rounded down to, which holds of any integers whose second is positive."""
    dividend, divisor, last = quotient
    return z3.Implies(z3.And(divisor > 0, dividend < divisor * (last + 1)), dividend / divisor <= last)


def _extents(access: Access, hypotheses: Hypotheses) -> tuple[z3.ArithRef, ...]:
    """Return the extents that each index must stay below: for a tensor, those that its caller allocated."""
    region = access.region
    if region.scope != "global":
        return region.shape
    if (shape := hypotheses.shapes.get(region.allocation)) is None:
        raise Unsupported(f"global memory {region.allocation}, which is not a tensor of the contract")
    if len(access.indices) == 1 and len(shape) != 1:
        return (hypotheses.elements(region.allocation),)
    if len(access.indices) != len(shape):
        raise Unsupported(f"{region.name}: {len(access.indices)} indices into {len(shape)} dimensions")
    return shape


def _launch(trace: Trace, hypotheses: Hypotheses, arch: str) -> list[Condition]:
    goals: list[tuple[str, str, z3.BoolRef]] = []  # what of the launch it is about, in words, and as a formula
    for tag, extent in ((tag, variable.count) for tag, variable in trace.launch.items()):
        low, most = _LEAST_AND_MOST[tag]
        goals.append((tag, f"{tag} extent {brief(extent)} is at most {most}", z3.And(extent >= low, extent <= most)))
    threads = z3.Product([v.count for v in trace.launch.values() if v.kind == "thread"])
    goals.append(("threads", f"at most {_THREADS} threads to a block", threads <= _THREADS))
    if any("wgmma" in name for name in trace.unmodelled):
        goals.append(("threads", "wgmma is run by whole warpgroups of 128 threads", threads % _WARPGROUP == 0))
    if (most_shared := _SHARED.get(arch.rstrip("af"))) is None:
        raise Unsupported(f"the shared memory of {arch}")
    static = sum(size for name, size in trace.shared_bytes.items() if name in trace.static)
    sizes = [("static shared memory", static, _STATIC_SHARED, "CUDA")] if static else []
    sizes.append(("shared memory", sum(trace.shared_bytes.values()), most_shared * 1024, arch))
    for what, size, most, whose in sizes:
        goals.append((what, f"{size} bytes of {what} are at most the {most} of {whose}", z3.BoolVal(size <= most)))
    return [Condition("launch", words, hypotheses.facts, goal, Site(f"launch: {what}")) for what, words, goal in goals]
