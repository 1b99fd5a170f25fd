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
    length: Annotated[int, typer.Option(min=2, max=4096, help="Bytes in each of two passages.")] = 256,
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
