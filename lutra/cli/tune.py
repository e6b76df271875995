"""What `lutra tune` is given, in words, and what it prints."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lutra.cli.model import load, resolve
from lutra.cli.options import threads_option
from lutra.cli.show import LoadProgress

if TYPE_CHECKING:
    from lutra.engine.llm import LLM
    from lutra.model.kinds import Kind


def tune(
    load: "Callable[[str | None], LLM]", model: str | None, shape: str | None, format: str, head: str,
    threads: int | None,
) -> str:  # fmt: skip
    """Tune for a model that `load` opens, or for a shape; return the table that is to be printed."""
    from lutra import machine
    from lutra.bench.report import machine_line, to_table
    from lutra.compiler import targets
    from lutra.kernels import tuned
    from lutra.model import tune as tuner

    if model is not None and shape is not None:
        raise click.UsageError("expected a MODEL or a --shape, got both; name one")
    kinds = kinds_of_shape(shape, format, head) if shape else kinds_of_model(load(model))
    with LoadProgress(lines=True) as progress:
        findings = tuner.tune(kinds, threads or machine.usable_cores(), progress)
    table = to_table([finding.cells() for finding in findings])
    path = tuned.path(targets.choose().isa)
    said = f"kept in {path}; texts stay the same, to the last bit"
    return "\n".join([machine_line(), "", table, "", *tuner.families(kinds), said])


def kinds_of_model(llm: "LLM") -> "list[Kind]":
    """The kinds of weights of a loaded model."""
    from lutra.model.kinds import kinds_of

    return kinds_of(llm.model.weights)


def kinds_of_shape(shape: str, format: str, head: str) -> "list[Kind]":
    """The kinds of weights of a named shape; raises RequestError and FormatError for names there are not."""
    from lutra.formats import catalog
    from lutra.model.kinds import kinds_of_shape
    from lutra.model.random import random_config

    return kinds_of_shape(random_config(shape), catalog.find(format), catalog.find(head) if head else None)


@click.command("tune")
@click.argument("model", required=False)
@click.option("--shape", help="Tune for a shape of `lutra bench` instead of a MODEL.")
@click.option("--format", default="ternary", show_default=True, help="Of the weights of that shape.")
@click.option("--head", default="", help="Format of its head.  Default: that of the other weights.")
@threads_option
def command(model: str | None, **options: Any) -> None:
    """Find the fastest kernels for the weights of MODEL on this computer, in seconds, and keep them for its next load.

    \b
    lutra tune model.gguf
    lutra tune --shape 2b --format ternary

    Speed is all that changes: every choice gives the same text.  LUTRA_ISA=avx2 lutra tune does it for another
    instruction set.  `before` is what the tables of lutra/kernels/ say.
    """
    click.echo(tune(load, resolve(model), **options))
