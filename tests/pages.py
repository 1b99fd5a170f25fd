"""What README and docs/ do not say by hand: tables made of the source and of records, each between two markers.

``<!-- NAME -->`` and ``<!-- end of NAME -->`` enclose the text that ``GENERATED[page][NAME]()`` returns. Verdicts are those of
``docs/verdicts.json``, which ``lemmata prove --json | python tests/pages.py`` writes.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lemmata.bench.bars import below
from lemmata.bench.report import markdown
from lemmata.digest import sources
from lemmata.operators import OPERATORS, Operator
from lemmata.proofs.accepted import ACCEPTED
from lemmata.proofs.engine.base.report import LAYERS, Layer, Report
from lemmata.proofs.engine.base.text import lines
from lemmata.record import records
from public_kernels import table as table_of_public_kernels
from specs import SPECS
from test_rooms import MAY

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "proofs" / "engine"
VERDICTS = ROOT / "docs" / "verdicts.json"
_KEPT = ("name", "conditions", "proved", "guards", "seconds", "unmodelled", "statements")  # of a layer's verdict


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; ``header`` names its columns, with bars between."""
    columns = header.split("|")
    return "\n".join(f"| {' | '.join(row)} |" for row in ([c.strip() for c in columns], ["---"] * len(columns), *rows))


def files(operator: Operator) -> dict[str, list[str]]:
    """Return the files that concern an operator, by what they are."""
    name = operator.name
    tests = [f"tests/specs_{name}.py", f"tests/test_{name}.py"]
    return {
        "formula": [f"reference/{name}.py"],
        "kernel": [f"kernels/{module.rpartition('.')[2]}.py" for module in operator.kernel_modules],
        "op": [f"bindings/{name}.py"],
        "proof": [f"proofs/{name}.py"] if operator.kernels else [],
        "tests": [path for path in tests if (ROOT / path).exists()],
        "bench": [f"bench/{name}.py"],
    }


def _linked(paths: Iterable[str], up: str = "") -> str:
    return (
        "none"
        if not (paths := list(paths))
        else ", ".join(f"[{path.rpartition('/')[2]}]({up}{path})" for path in paths)
    )


def _called(operator: Operator) -> str:
    """Its name, and its public functions where they are called otherwise."""
    others = [f"`{function}`" for function in operator.functions if function != operator.name]
    return f"`{operator.name}`" + (f": {', '.join(others)}" if others else "")


def operators() -> str:
    """Return the table of operators by files, for the README."""
    found = {name: files(operator) for name, operator in OPERATORS.items()}
    header = "operator | formula | kernel | op | proof | tests | bench | page"
    return table(
        header,
        (
            [_called(OPERATORS[name]), *map(_linked, kinds.values()), f"[{name}.md](docs/{name}.md)"]
            for name, kinds in found.items()
        ),
    )


def functions() -> str:
    """Return the table of public functions, for the first page: which page documents each, and what it runs on a GPU."""
    rows = (
        [
            f"[{operator.title}]({name}.md)",
            ", ".join(f"`{function}`" for function in operator.public),
            _kernels(operator),
            _backward(operator),
        ]
        for name, operator in OPERATORS.items()
    )
    return table("operator | functions | kernels on a GPU | backward on a GPU", rows)


def links(operator: Operator) -> str:
    """Return the links from an operator's page to its sources, and to what its kernels are made of besides."""
    kinds = files(operator)
    shared = sources(operator.kernel_modules)
    made_of = sorted(f"kernels/{module.rpartition('.')[2]}.py" for module in shared if ".kernels." in module)
    rows = [f"- {kind}: {_linked(paths, '../')}" for kind, paths in kinds.items()]
    if more := [path for path in made_of if path not in kinds["kernel"]]:
        rows.insert(2, f"- what the kernel is made of besides: {_linked(more, '../')}")
    return "\n".join(rows)


def _verdicts() -> list[dict[str, Any]]:
    kernels: list[dict[str, Any]] = json.loads(VERDICTS.read_text())["kernels"]
    return kernels


def state() -> str:
    """Return the table of what there is: kernels, derivatives, layers proved, and of which kernels the GPU record is."""
    return table(
        "operator | public functions | kernels | backward on a GPU | layers proved | GPU record",
        (
            [
                f"[`{name}`](docs/{name}.md)",
                ", ".join(f"`{function}`" for function in operator.public),
                _kernels(operator),
                _backward(operator),
                "; ".join(_proved(name)) or "nothing",
                ", ".join(_recorded(name)),
            ]
            for name, operator in OPERATORS.items()
        ),
    )


def _kernels(operator: Operator) -> str:
    """Its kernels, or what runs instead."""
    return (
        ", ".join(f"`{kernel.partition(':')[2]}`" for kernel in operator.kernels)
        or "none: the PyTorch reference, in chunks"
    )


def _backward(operator: Operator) -> str:
    derived = {spec.contract.op for spec in SPECS if spec.operator == operator.name and spec.differentiable}
    if not derived:
        return "no derivative"
    if any("_bwd" in kernel for kernel in operator.kernels):
        return "a kernel"
    of = "" if derived == set(operator.functions) else f"{', '.join(f'`{f}`' for f in sorted(derived))}: "
    return f"{of}the PyTorch reference, in chunks"


def _proved(op: str) -> Iterator[str]:
    """Which layers are proved of which kernels, in some configuration; kernels with the same layers together."""
    layers: dict[str, set[str]] = {}
    for kernel in _verdicts():
        if kernel["op"] == op:
            layers.setdefault(kernel["name"].split()[0], set()).update(layer["name"] for layer in kernel["layers"])
    together: dict[tuple[str, ...], list[str]] = {}
    for name, found in layers.items():
        together.setdefault(tuple(layer for layer in LAYERS if layer in found - {"run"}), []).append(name)
    for found_layers, names in together.items():
        yield f"{', '.join(f'`{name}`' for name in names)}: {', '.join(found_layers)}"


def is_of(op: str, test: str) -> bool:
    """Return whether a test is of an operator: by its parameters or, where these name none, by its file."""
    names = {op: {op, *operator.functions} for op, operator in OPERATORS.items()}
    for spec in SPECS:
        names[spec.operator].add(spec.name)
    file, _, rest = test.partition("::")
    words = set(re.findall(r"\w+", rest.partition("[")[2]))
    named = {op for op, known in names.items() if words & known}
    return op in named if named else file == f"tests/test_{op}.py"


def _code(op: str) -> str:
    """Return what a GPU runs for an operator."""
    return "kernel" if OPERATORS[op].kernels else "reference"


def _recorded(op: str) -> Iterator[str]:
    for record in records():
        tests = sum(is_of(op, name) for name in record.tests)
        present = f"present {_code(op)}, {tests} GPU tests" if tests else "no tests"
        state = "none" if op not in record.kernels else f"{_code(op)} changed since" if record.stale(op) else present
        yield f"{record.device['name']}: {state}"


def cards() -> str:
    """Return the table of operators by cards: what runs there, and which of its tests passed there."""
    devices = (f"{record.device['name']} ({record.device['capability']})" for record in records())
    header = " | ".join(["operator", "CPU", *devices, "others of 9.0", "other GPUs"])
    others = {
        True: ("kernel, not tested", "none"),
        False: ("reference, not tested",) * 2,
    }  # by whether there are kernels
    rows = (
        [f"`{name}`", "reference, tested", *_tested(name), *others[bool(operator.kernels)]]
        for name, operator in OPERATORS.items()
    )
    return table(header, rows)


def _tested(op: str) -> Iterator[str]:
    """Whether the tests on each card that name an operator passed, and of which kernel they are."""
    for record in records():
        if op not in record.kernels:
            yield f"{_code(op)}, not recorded"
            continue
        outcomes = Counter(outcome for test, outcome in record.tests.items() if is_of(op, test))
        of = f"an earlier {_code(op)}" if record.stale(op) else f"this {_code(op)}"
        counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        yield f"{of}, tests: {counted}" if counted else f"{of}, no test recorded"


def verdicts() -> str:
    """Return the table of all that ``lemmata prove`` shows: conditions proved in each layer, by kernel."""

    def cell(kernel: Mapping[str, Any], name: str) -> str:
        found = [layer for layer in kernel["layers"] if layer["name"] == name]
        return " ".join(f"{layer['proved']}/{layer['conditions']}" for layer in found)

    proofs = tuple(layer for layer in LAYERS if layer != "run")
    rows = ([f"`{kernel['name']}`", *(cell(kernel, layer) for layer in proofs)] for kernel in _verdicts())
    return table(" | ".join(["kernel", *proofs]), rows)


def named() -> str:
    """Return the table of what the verdicts name as not modelled, in which layers, and why.

    Raises:
        ValueError: a verdict names something that is not accepted.
    """
    layers: dict[str, set[str]] = {}
    for kernel in _verdicts():
        for layer in kernel["layers"]:
            for name in layer["unmodelled"]:
                layers.setdefault(re.sub("<.*>", "<...>", name), set()).add(layer["name"])
    rows = []
    for each in ACCEPTED:
        mine = sorted(name for name in layers if all(each.of(layer, name) for layer in layers[name]))
        together: dict[str, list[str]] = {}
        for name in mine:
            together.setdefault(", ".join(sorted(layers.pop(name))), []).append(f"`{name}`")
        rows += [[", ".join(names), where, each.why] for where, names in together.items()]
    if layers:
        raise ValueError(f"verdicts: expected names that are accepted, got {sorted(layers)}")
    return table("named in the verdict | layers | what it is", rows)


def sample() -> str:
    """Return what ``lemmata prove`` printed of the first kernel in the record."""
    kernel = _verdicts()[0]
    layers = tuple(Layer(**{**layer, "unmodelled": tuple(layer["unmodelled"])}) for layer in kernel["layers"])
    printed = list(lines(kernel["name"], Report(kernel["name"], "", {}, {}, layers)))
    total = sum(len(each["layers"]) for each in _verdicts())
    numbered = (f"[{number:>{len(str(total))}}/{total}] " for number in itertools.count(1))
    shown = [next(numbered) + line if line.startswith(LAYERS) else line for line in printed]
    last = 1 + max(at for at, line in enumerate(printed) if line.startswith(LAYERS))
    return "\n".join(["```", f"$ lemmata prove | head -{last}", *(line.rstrip() for line in shown[:last]), "```"])


def figures() -> str:
    """Return the figures of each GPU record."""
    return "\n\n".join(
        f"{record.device['name']}:\n\n{markdown(record.figures, record.earlier)}" for record in records()
    )


def faster() -> str:
    """Return how each public function fares beside each contender: in how many cases it is slower, and the ratios.

    Cases that are of an earlier kernel have rows of their own, below.
    """
    ratios: dict[tuple[bool, str, str], list[float]] = {}
    for record in records():
        ours = {(f["op"], f["shape"]): f["burst_us"] for f in record.figures if f["contender"] == "lemmata"}
        for other in record.figures:
            if other["contender"] != "lemmata":
                ratio = other["burst_us"] / ours[other["op"], other["shape"]]
                ratios.setdefault((record.earlier(other), other["op"], other["contender"]), []).append(ratio)
    rows = (
        [
            f"`{op}`" + (", earlier kernel" if earlier else ""),
            contender,
            str(len(found)),
            str(sum(r < 1 for r in found)),
            " to ".join(dict.fromkeys(f"{r:.2f}" if r >= 1 else below(r) for r in (min(found), max(found)))),
        ]
        for (earlier, op, contender), found in sorted(ratios.items())
    )
    return table("function | contender | cases, on all cards | slower in | contender's time / lemmata's", rows)


def training() -> str:
    """Return what a training step costs on each card, from the records that ``bench/training.py`` writes."""
    rows = []
    for path in sorted((ROOT / "bench" / "results" / "training").glob("*.json")):
        record = json.loads(path.read_text())
        for tokens, both in itertools.groupby(record["rows"], lambda row: row["tokens"]):
            costs = {row["model"]: _cost(row) for row in both}
            rows.append([record["device"], str(tokens), costs["lemmata"], costs["transformers"]])
    return table("card | tokens | on lemmata | untouched", rows) if rows else "Not measured on a card yet."


def _cost(row: Mapping[str, Any]) -> str:
    return "out of memory" if row["ms"] is None else f"{row['ms']:.0f} ms, {row['gib']:.1f} GiB"


def automodel() -> str:
    """Return what a training step of AutoModel's costs on each card, from what ``bench/automodel.py`` writes."""
    rows = []
    for path in sorted((ROOT / "bench" / "results" / "automodel").glob("*.json")):
        record = json.loads(path.read_text())
        for step in record["steps"]:
            cost = f"{step['ms']:.0f} ms", f"{step['peak_mib'] / 1024:.1f} GiB", f"{step['loss']:.4f}"
            rows.append([record["device"], str(record["tokens"]), step["contender"], *cost])
    return table("card | tokens | on | time | memory | loss", rows)


def layer() -> str:
    """Return what hyper-connections cost a layer on each card, from the records that ``bench/layer.py`` writes."""
    found = []
    for path in sorted((ROOT / "bench" / "results" / "layer").glob("*.json")):
        record = json.loads(path.read_text())
        for row in record["rows"]:
            times = [f"{row[f'{what}_ms']:.2f} ms, {row[f'{what}_share']:.1%}" for what in ("forward", "step")]
            found.append([record["device"], str(record["tokens"]), row["connections"], *times])
    header = "card | tokens | hyper-connections | forward, their share | forward and backward, their share"
    return table(header, found) if found else "Not measured on a card yet."


def decode_step() -> str:
    """Return what an eager decode step costs on each card, from the records that ``bench/decode_step.py`` writes."""
    found = []
    for path in sorted((ROOT / "bench" / "results" / "decode_step").glob("*.json")):
        record = json.loads(path.read_text())
        theirs, ours = ({row["model"]: row for row in record["rows"]}[name] for name in ("transformers", "lemmata"))
        calls = sum(each["calls"] for each in ours["calls"].values())
        times = f"{theirs['step_ms']:.1f} ms", f"{ours['step_ms']:.1f} ms"
        found.append(
            [record["device"], str(record["tokens"]), *times, f"{ours['inside_ms']:.2f} ms in {calls:.0f} calls"]
        )
    header = "card | tokens | untouched | on lemmata | the host inside lemmata"
    return table(header, found) if found else "Not measured on a card yet."


def _numbers(shape: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", shape)]


def splits() -> str:
    """Return what decode takes by default and in other splits, where the records have both; before a colon lemmata."""
    found = []
    for record in records():
        bursts: dict[tuple[str, str], dict[str, float]] = {}
        for figure in record.figures:
            bursts.setdefault((figure["op"], figure["shape"]), {})[figure["contender"]] = figure["burst_us"]
        for (op, shape), other in sorted(bursts.items(), key=lambda case: (case[0][0], _numbers(case[0][1]))):
            case, _, count = shape.rpartition(", ")
            if count.endswith(("split", "splits")) and (default := bursts.get((op, case))):
                pairs = [
                    [each["lemmata"], *(us for name, us in each.items() if name != "lemmata")]
                    for each in (default, other)
                ]
                found.append(
                    [
                        record.device["name"],
                        f"`{op}` {case}",
                        count,
                        *(" : ".join(f"{us:.1f}" for us in p) for p in pairs),
                    ]
                )
    return (
        table("card | case | splits | default : FlashMLA | so many : FlashMLA", found) if found else "Not measured yet."
    )


def rooms() -> str:
    """Return the first paragraphs of the engine's rooms, from the lowest room up."""
    parts = []
    for room in MAY:
        words = ast.get_docstring(ast.parse((ENGINE / room / "__init__.py").read_text())) or ""
        parts.append(f"### {room}\n\n{words.replace('``', '`')}")
    return "\n\n".join(parts)


GENERATED: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"operators": operators, "cards": cards, "state": state, "sample": sample},
    "docs/index.md": {"functions": functions},
    "docs/install.md": {"cards": cards},
    "docs/figures.md": {"faster": faster, "figures": figures},
    "docs/training.md": {"training": training},
    "docs/automodel.md": {"automodel": automodel},
    "docs/transformers.md": {"decode step": decode_step},
    "docs/serving.md": {"splits": splits},
    "docs/engine.md": {"rooms": rooms},
    "docs/proofs.md": {"verdicts": verdicts, "named": named},
    "docs/public_kernels.md": {
        "summary": table_of_public_kernels.summary,
        "public verdicts": table_of_public_kernels.verdicts,
        "reasons": table_of_public_kernels.reasons,
        "aside": table_of_public_kernels.aside,
    },
    **{f"docs/{name}.md": {"sources": lambda op=operator: links(op)} for name, operator in OPERATORS.items()},
    "docs/mhc.md": {"sources": lambda: links(OPERATORS["mhc"]), "layer": layer},
}


def fill(text: str, name: str, content: str) -> str:
    """Return a page with the content between the markers of that name.

    Raises:
        ValueError: the page does not have these markers once.
    """
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    filled, count = block.subn(lambda m: f"{m[1]}\n{content}\n\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"{name}: expected one pair of markers, got {count}")
    return filled


def kept(proved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pages use of the answer of ``lemmata prove --json``, with the operator of each kernel.

    Raises:
        ValueError: not everything holds.
    """
    if not proved["holds"]:
        raise ValueError("lemmata prove: expected that everything holds")
    from lemmata.proofs.suite import proofs

    suite = [(op, proof.name) for op in OPERATORS for proof in proofs(op)]
    kernels = [
        {"name": name, "op": op, "layers": [{key: layer[key] for key in _KEPT} for layer in kernel["layers"]]}
        for (op, name), kernel in zip(suite, proved["kernels"], strict=True)
        if name == kernel["name"]
    ]
    if len(kernels) < len(suite):
        raise ValueError("lemmata prove: expected every kernel of the suite, in its order")
    return {"versions": proved["kernels"][0]["versions"], "kernels": kernels}


if __name__ == "__main__":
    VERDICTS.write_text(json.dumps(kept(json.load(sys.stdin)), indent=1) + "\n")
