"""The command ``lemmata``. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def main() -> None:
    """TileLang kernels for DeepSeek-V4, each with a PyTorch reference and proofs."""


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
    from .demo import print_report, run
    from .integrations.transformers import UnknownVersionError

    try:
        report = run(text, length=length, steps=steps)
    except (ValueError, UnknownVersionError) as error:
        typer.echo(f"lemmata demo: {error}", err=True)
        raise typer.Exit(2) from error
    print_report(report, as_json=as_json)
    raise typer.Exit(1 if report.failures else 0)


@app.command()
def info(as_json: Json = False) -> None:
    """Show versions, the GPU, each operator's backend, and whether the GPU records are of these kernels."""
    from .info import gather, print_info

    try:
        found = gather()
    except ValueError as error:  # a file that is no record
        typer.echo(f"lemmata info: {error}", err=True)
        raise typer.Exit(1) from error
    print_info(found, as_json=as_json)


@app.command()
def bench(
    ops: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Operators; all by default.")] = None,
    as_json: Json = False,
) -> None:
    """Time the kernels on this GPU beside their peers, and write the figures into its record."""
    try:
        from .bench.report import missed, print_figures, run

        measured = run(ops or ())
    except (ValueError, RuntimeError, ImportError) as error:
        typer.echo(f"lemmata bench: {error}", err=True)
        raise typer.Exit(2) from error
    print_figures(measured.figures, as_json=as_json)
    wrong = [*measured.failed, *missed(measured.figures)]
    for line in (*measured.absent, *wrong):
        typer.echo(f"lemmata bench: {line}", err=True)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def warmup(
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Kernels compiled at a time; by default one per core.")
    ] = None,
) -> None:
    """Compile the kernels that DeepSeek-V4 uses, so that no request waits for a compiler."""
    import torch

    if not torch.cuda.is_available():
        typer.echo("lemmata warmup: expected a CUDA device, got none", err=True)
        raise typer.Exit(2)
    try:
        from .warmup import cores, kernels, side_by_side, to_disk

        wanted = [(to_disk, *kernel) for kernel in kernels()]
    except ModuleNotFoundError as error:
        typer.echo(f"lemmata warmup: {error}: pip install 'lemmata[cuda]'", err=True)
        raise typer.Exit(2) from error
    for _, factory, config in side_by_side(wanted, jobs or cores()):
        typer.echo(f"built {factory.__name__} {config}")


@app.command()
def prove(
    ops: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Operators; all by default.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="L0, L1, L2, range, lemmas or run; may be repeated.")] = None,
    mutants: Annotated[bool, typer.Option("--mutants", help="Also prove that every mutant is refuted.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the solver.")] = 0,
    rlimit: Annotated[int | None, typer.Option(min=1, help="Steps that z3 may take for one condition.")] = None,
    smt: Annotated[Path | None, typer.Option(file_okay=False, help="Write each condition there, as SMT-LIB.")] = None,
    solver: Annotated[str, typer.Option(help="z3, or cvc5 alone.")] = "z3",
    table: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the mutants' fates there, as Markdown.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not use verdicts kept from earlier runs.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Kernels proved at a time.")] = 1,
    as_json: Json = False,
) -> None:
    """Prove the kernels, from the IR that ships, for every size that their contracts admit."""
    try:
        from .proofs.command import Request, run
    except ImportError as error:
        typer.echo(f"lemmata prove: {error}: pip install 'lemmata[proofs]'", err=True)
        raise typer.Exit(2) from error
    for target in (smt, table):
        if target is not None and not target.absolute().parent.is_dir():
            raise typer.BadParameter(f"expected a path in an existing folder, got {target}")
    if table is not None and not mutants:
        raise typer.BadParameter("expected --mutants too, got --table alone")
    if solver not in ("z3", "cvc5"):
        raise typer.BadParameter(f"expected z3 or cvc5, got {solver}", param_hint="--solver")
    options = {"seed": seed, "solver": solver, "smt": smt, "fresh": fresh, "layers": layer or None}
    options |= {"rlimit": rlimit} if rlimit else {}
    request = Request(tuple(ops or ()), jobs, as_json, table, options, mutants)
    try:
        holds = run(request)
    except KeyboardInterrupt:
        typer.echo("lemmata prove: interrupted; the verdicts on kernels that are done are kept", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        typer.echo(f"lemmata prove: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(0 if holds else 1)


if __name__ == "__main__":
    app()
