"""The skeleton of synchronisation in the CUDA that TileLang prints, read line by line.

It is printed in few forms, one statement a line, so that each line is matched whole. What synchronises is known by the
names in `_EVENTS`; a line that calls anything else than these and `_SILENT` is refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tilelang.engine.lower import device_codegen_without_compile
from tvm.ir.transform import PassContext

from ..base.errors import Unsupported
from ..compiler.extract import Lowered
from .skeleton import Apply, Branch, Event, Loop, Name, Node, Skeleton, Term, folded

_EVENTS = {
    r"(\w+\[.+\])\.init\((\d+)\);": "mbarrier.init",
    r"(\w+\[.+\])\.arrive\(\);": "mbarrier.arrive",
    r"(\w+\[.+?\])\.wait\((.+)\);": "mbarrier.wait",
    r"tl::fence_barrier_init\(\);": "fence.mbarrier_init",
    r"tl::mbarrier_cp_async_arrive_noinc\((.+)\);": "cp.async.mbarrier.arrive.noinc",
    r"tl::cp_async_gs<(\d+)>\(.+\);": "cp.async",
    r"tl::cp_async_gs_conditional<(\d+)>\(.+\);": "cp.async.zfill",
    r"tl::cp_async_commit\(\);": "cp.async.commit_group",
    r"tl::cp_async_wait<(\d+)>\(\);": "cp.async.wait_group",
    r"tl::warpgroup_arrive\(\);": "wgmma.fence",
    r"tl::wgmma_ss<tl::\w+::\w+, tl::\w+::\w+, tl::\w+::\w+, (\d+), (\d+), (\d+), .+\);": "wgmma.mma_async.ss",
    r"tl::wgmma_rs<tl::\w+::\w+, tl::\w+::\w+, tl::\w+::\w+, (\d+), (\d+), (\d+), .+\);": "wgmma.mma_async.rs",
    r"tl::warpgroup_commit_batch\(\);": "wgmma.commit_group",
    r"tl::(?:warpgroup_wait|wait_wgmma)<(\d+)>\(\);": "wgmma.wait_group",
    r"tl::fence_proxy_async\(\);": "fence.proxy.async",
    r"__syncthreads(\(\));": "bar.sync",
    r"tl::__sync_thread_partial\((\d+), (\d+)\);": "bar.sync",
    r"tl::warpgroup_reg_dealloc<(\d+)>\(\);": "setmaxnreg.dec",
    r"tl::warpgroup_reg_alloc<(\d+)>\(\);": "setmaxnreg.inc",
    r"cudaGridDependencySynchronize\(\);": "griddepcontrol.wait",
    r"cudaTriggerProgrammaticLaunchCompletion\(\);": "griddepcontrol.launch_dependents",
}
_EMBEDDED = {
    "__shfl_sync": "shfl.idx",
    "__shfl_up_sync": "shfl.up",
    "__shfl_xor_sync": "shfl.bfly",
    "__ballot_sync": "vote.ballot",
    "AtomicAdd": "atom.add",
}
_SILENT = re.compile(
    r"max|min|expf|exp2f|logf|rsqrtf|make_\w+|u?int\d*_t|bfloat16_t|std::numeric_limits|reinterpret_cast|__align__|__clz|__popc"
    r"|__pack_\w+|__\w+22?(?:float2|bfloat162)\w*|tl::(?:fast_rcp|initialize_wgmma_descriptor|increase_descriptor_offset"
    r"|warpgroup_fence_operand|ptx_stmatrix_\w+|tl_shuffle_elect|(?:to|from)_uint1|mul2)"
)
"""Calls that order nothing: values and addresses."""

_CALL = re.compile(r"([A-Za-z_][\w:]*)(<[^;()]*>(?:::\w+)?)?\(")
_FOR = re.compile(r"for \(int (\w+) = (.+); \1 < (.+); \+\+\1\) \{")
_CAST = re.compile(r"\((?:u?int(?:\d+_t)?|bool|float|(?:unsigned )?long long) ?\*?\)")
_OPERATORS: dict[type[ast.AST], str] = {
    **{ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "//", ast.Mod: "%", ast.LShift: "<<", ast.RShift: ">>"},
    **{ast.BitAnd: "&", ast.And: "and", ast.Or: "or", ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<="},
    **{ast.Gt: ">", ast.GtE: ">="},
}


def printed(low: Lowered) -> str:
    """Return the CUDA that the compiler prints at the end of the run that the levels of a kernel are of."""
    target, backend, options = low.build
    with target, PassContext(**options):
        return str(device_codegen_without_compile(low.final, backend).inspect_source())


def term(text: str) -> Term:
    """Return an expression without its casts; it is printed with parentheses, so that Python's grammar reads it as C's.

    Raises:
        Unsupported: it is of another form than those that are printed where threads synchronise.
    """
    python = re.sub(r"tl::(\w+)<(\d+)>\(\)", r"\1(\2)", _CAST.sub("", text))
    python = re.sub(r"!(?!=)", " not ", python.replace("&&", " and ").replace("||", " or "))
    try:
        return _converted(ast.parse(python.strip(), mode="eval").body)
    except (SyntaxError, KeyError) as error:
        raise Unsupported(f"emitted code, the expression {text}") from error


def _converted(node: ast.expr) -> Term:
    match node:
        case ast.Constant(int(value)):
            return value
        case ast.Name(name):
            return Name(name)
        case ast.Attribute(ast.Name(name), field):  # threadIdx.x
            return Name(f"{name}.{field}")
        case ast.Subscript(buffer, index):
            return Apply("[]", (_converted(buffer), _converted(index)))
        case ast.UnaryOp(ast.USub(), ast.Constant(int(value))):
            return -value
        case ast.UnaryOp(ast.Not(), operand):
            return Apply("not", (_converted(operand),))
        case ast.BoolOp(_, [a, b]) | ast.BinOp(a, _, b) | ast.Compare(a, [_], [b]):
            operator = node.ops[0] if isinstance(node, ast.Compare) else node.op
            return folded(_OPERATORS[type(operator)], _converted(a), _converted(b))
        case ast.Call(ast.Name(function), operands):
            return Apply(function, tuple(map(_converted, operands)))
    raise SyntaxError(ast.dump(node))


def _calls(line: str, own: frozenset[str]) -> Iterator[Event]:
    """Yield what the calls within a line do.

    Raises:
        Unsupported: there is a call of which it is not known whether it orders anything.
    """
    for name, parameters in _CALL.findall(line):
        if name in _EMBEDDED or name == "tl::AllReduce":
            yield Event(_EMBEDDED.get(name, name + parameters))
        elif name not in own and not _SILENT.fullmatch(name):
            raise Unsupported(f"emitted code of a call of {name}: {line}")


def _events(line: str, own: frozenset[str]) -> Iterator[Event]:
    """Yield what a statement does."""
    for pattern, kind in _EVENTS.items():
        if found := re.fullmatch(pattern, line):
            yield from _calls(line[line.index("(") :], own)
            yield Event(kind, tuple(0 if operand == "()" else term(operand) for operand in found.groups()))
            return
    if not line.endswith(";"):
        raise Unsupported(f"emitted code, the line {line}")
    yield from _calls(line, own)


def _block(lines: Iterator[str], own: frozenset[str]) -> tuple[list[Node], str]:
    """Return what happens up to the end of a block, and the line that ends it."""
    body: list[Node] = []
    unrolled = False
    for line in lines:
        if line in ("}", "} else {"):
            return body, line
        if found := _FOR.fullmatch(line):
            inside, _ = _block(lines, own)
            body += _calls(line, own)
            body += [Loop(Name(found[1]), term(found[2]), term(found[3]), inside, unrolled)] if inside else []
        elif line.startswith("if (") and line.endswith(") {"):
            condition = line.removeprefix("if (").removesuffix(") {")
            then, end = _block(lines, own)
            otherwise, _ = _block(lines, own) if end == "} else {" else ([], end)
            body += _calls(line, own)
            body += [Branch(term(condition), (then, otherwise))] if then or otherwise else []
        elif line == "{":
            body += _block(lines, own)[0]
        elif line != "#pragma unroll":
            body += _events(line, own)
        unrolled = line == "#pragma unroll"
    raise Unsupported("emitted code that ends within a block")


def skeleton(source: str) -> Skeleton:
    """Return the skeleton of the kernel in a text that TileLang printed.

    Raises:
        Unsupported: there is a line that it does not know.
    """
    before, head, body = re.split(r'(?m)^(extern "C" __global__ void .+\)) \{$', source)
    parameters = re.findall(r"(\w+)[,)]", head[head.rindex("(") :])
    own = frozenset(re.findall(r"(\w+)\([^()]*\) \{", before))  # functions that the kernel brings along
    nodes, _ = _block(iter(line.strip() for line in body.splitlines() if line.strip()), own)
    return Skeleton(tuple(map(Name, parameters)), nodes)
