"""The command ``lemmata``. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .interrupts import ending

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; what is done goes to stderr.")]
Names = typer.Argument(metavar="[OP]...", help="Operators or public functions; all by default.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lemmata {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """TileLang kernels for DeepSeek-V4, each with a PyTorch reference and proofs."""


@contextmanager
def _failing(command: str, *errors: type[Exception], kept: str = "", status: int = 2) -> Iterator[None]:
    """Say an error in one line and exit with a status; an interrupt exits with 130, and says what is kept."""
    interrupted = f"lemmata {command}: interrupted{kept}"
    try:
        with ending(interrupted):
            yield
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(str(error.name).partition(".")[0])
        if extra is None:
            raise
        if (command, extra) == ("prove", "cuda"):
            extra = "proofs"  # whose TileLang is of the version that the engine reads
        typer.echo(f"lemmata {command}: {error}: pip install 'lemmata[{extra}]'", err=True)
        raise typer.Exit(2) from error
    except errors as error:
        typer.echo(f"lemmata {command}: {error}", err=True)
        raise typer.Exit(status) from error


_EXTRAS = {"tilelang": "cuda", "tvm": "cuda", "transformers": "hf", "z3": "proofs", "cvc5": "proofs"}


@app.command()
def demo(
    text: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="The text to read; by default Python's documentation."),
    ] = None,
    length: Annotated[int, typer.Option(min=2, max=1024, help="Bytes in each of two passages.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Tokens decoded, and tokens generated.")] = 32,
    as_json: Json = False,
) -> None:
    """Run a small DeepSeek-V4 from transformers on a text, without and with lemmata, and compare."""
    from .integrations.originals import UnknownVersionError

    with _failing("demo", ValueError, UnknownVersionError):
        from .demo import print_report, run

        report = run(text, length=length, steps=steps, say=lambda line: typer.echo(line, err=True))
        print_report(report, as_json=as_json)
    raise typer.Exit(1 if report.failures else 0)


@app.command()
def info(as_json: Json = False) -> None:
    """Show versions, the GPU, each operator's backend, and whether the GPU records are of these kernels."""
    with _failing("info", ValueError, status=1):  # a file that is no record
        from .info import gather, print_info

        print_info(gather(), as_json=as_json)


@app.command()
def bench(
    ops: Annotated[list[str] | None, Names] = None,
    against: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="An older record to compare with.")
    ] = None,
    limit: Annotated[float, typer.Option(min=0, help="Per cent that a time may be above the older one.")] = 5.0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw the times there, as SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Time the kernels on this GPU beside their peers, and write the figures into its record."""
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"expected a path in an existing folder, got {plot}", param_hint="--plot")
    kept = "; the cases that are done are in the record"
    with _failing("bench", ValueError, RuntimeError, ImportError, OSError, kept=kept):
        from .bench.report import draw, missed, older_figures, print_figures, run, slower

        older = older_figures(against) if against else []
        measured = run(ops or (), say=functools.partial(typer.echo, err=as_json))
        if plot is not None:
            draw(measured.figures, plot)
        print_figures(measured.figures, as_json=as_json)
    wrong = [*measured.failed, *missed(measured.figures), *slower(measured.figures, older, limit)]
    for line in (*measured.absent, *wrong):
        typer.echo(f"lemmata bench: {line}", err=True)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def warmup(
    ops: Annotated[list[str] | None, Names] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Kernels compiled at a time; by default one per core.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A model's config.json; by default Flash and Pro.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(file_okay=False, help="Compile into this folder, for LEMMATA_KERNELS; needs no GPU.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile the kernels that DeepSeek-V4 uses, so that no request waits for a compiler."""
    import json

    built = []
    with _failing("warmup", ValueError, kept="; the kernels that are built are kept"):
        from . import models, shipping
        from . import warmup as compiling

        sizes = [models.read(model)] if model else models.DEEPSEEK_V4
        wanted = compiling.jobs(compiling.kernels(ops or (), sizes), export)
        for number, (_, factory, config, *_) in enumerate(compiling.side_by_side(wanted, jobs or compiling.cores()), 1):
            built.append({"kernel": factory.__name__, "config": str(config)})
            typer.echo(f"[{number}/{len(wanted)}] built {factory.__name__} {config}", err=as_json)
        if export:
            shipping.label(export)
    if as_json:
        typer.echo(json.dumps({"built": built}, indent=1))


@app.command()
def prove(
    ops: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OP]...", help="Operators, public functions, or FILE.py:KERNEL; all of ours by default."
        ),
    ] = None,
    layer: Annotated[list[str] | None, typer.Option(help="L0, L1, L2, range, lemmas or run; may be repeated.")] = None,
    mutants: Annotated[bool, typer.Option("--mutants", help="Also prove that every mutant is refuted.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the solver.")] = 0,
    rlimit: Annotated[int | None, typer.Option(min=1, help="Steps that z3 may take for one condition.")] = None,
    smt: Annotated[Path | None, typer.Option(file_okay=False, help="Write each condition there, as SMT-LIB.")] = None,
    solver: Annotated[str, typer.Option(help="z3, or cvc5 alone.")] = "z3",
    table: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the mutants' fates there, as Markdown.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the verdicts there, as JUnit XML.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not use verdicts kept from earlier runs.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Layers, and shares of the mutants, at a time.")] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds that a layer may take, or a few mutants; L2 and range count as one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove the kernels, from the IR that ships, for every size that their contracts admit."""
    for target in (smt, table, junit):
        if target is not None and not target.absolute().parent.is_dir():
            raise typer.BadParameter(f"expected a path in an existing folder, got {target}")
    if table is not None and not mutants:
        raise typer.BadParameter("expected --mutants too, got --table alone")
    if solver not in ("z3", "cvc5"):
        raise typer.BadParameter(f"expected z3 or cvc5, got {solver}", param_hint="--solver")
    with _failing("prove", ImportError):
        from .proofs.engine.base.errors import UnsupportedVersion

    with _failing(
        "prove", ValueError, OSError, ImportError, UnsupportedVersion, kept="; the verdicts that are printed are kept"
    ):
        from .proofs.command import Request, layer_named, run

        layers = [layer_named(name) for name in layer] if layer else None
        options = {"seed": seed, "solver": solver, "smt": smt, "fresh": fresh, "layers": layers, "mutate": mutants}
        options |= {"rlimit": rlimit} if rlimit else {}
        holds = run(Request(tuple(ops or ()), jobs, timeout, as_json, table, junit, options))
    raise typer.Exit(0 if holds else 1)


if __name__ == "__main__":
    app()
