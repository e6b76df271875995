"""What `lutra bench` is given, in words, and how it runs: one model at a time, progress on stderr."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lutra.cli.options import kv_option

MAX_COUNT = 1 << 20  # of tokens, threads or rows


class Names(click.ParamType):
    """Words joined by commas."""

    name = "name,…"

    def convert(
        self, value: str | list[str], param: click.Parameter | None, context: click.Context | None
    ) -> list[str]:
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        if not all(words):
            self.fail(f"expected names joined by commas, got {value!r}; leave none empty", param, context)
        return words


class Counts(click.ParamType):
    """Positive whole numbers and ranges joined by commas: 1-4,8 is 1, 2, 3, 4, 8."""

    name = "n,…"

    def convert(
        self, value: str | list[int], param: click.Parameter | None, context: click.Context | None
    ) -> list[int]:
        if not isinstance(value, str):
            return value
        try:
            bounds = [[int(end) for end in word.split("-", 1)] for word in value.split(",")]
        except ValueError:
            bounds = []
        # the ends are checked before the numbers between them are made
        are_counts = all(1 <= end <= MAX_COUNT for ends in bounds for end in ends)
        found = [n for first, *last in bounds for n in range(first, (last or [first])[0] + 1)] if are_counts else []
        if not found:
            self.fail(f"expected whole numbers of at least 1, as in 1-4,8, got {value!r}", param, context)
        return found


def command_line() -> str:
    """The command that is running, as one would type it."""
    return shlex.join(["lutra", *sys.argv[1:]])


def say(message: str) -> None:
    """A line of progress on stderr, without a thread of its own: nothing may run beside what is measured."""
    click.secho(message, err=True, dim=True)


def bench(
    shapes: Sequence[str], formats: Sequence[str], head: str, order: str, kv: str, prompts: Sequence[int], gen: int,
    threads: Sequence[int] | None, rounds: int, output: str, batch: Sequence[int] | None, kernels: bool,
    rival: Path | None, rival_model: Path | None,
) -> str:  # fmt: skip
    """Measure every combination; return what is to be printed.  Options as in `lutra bench --help`."""
    from lutra import machine
    from lutra.bench import report
    from lutra.bench.case import Case, models
    from lutra.bench.curve import curve
    from lutra.bench.launches import launches
    from lutra.bench.measure import Say, measure
    from lutra.bench.rival import Rival
    from lutra.bench.run import run
    from lutra.model.weights import Weights

    if (rival is None) != (rival_model is None):
        raise click.UsageError("expected --rival and --rival-model together, got one of them; name both")
    opponent = Rival(rival, rival_model) if rival and rival_model else None

    def one(case: Case, weights: Weights, tell: Say) -> Sequence[report.Result]:
        if batch:
            return curve(case, weights, batch, rounds, tell)
        if kernels:
            return launches(case, weights, rounds, tell)
        return [measure(case, weights, rounds, opponent, tell)]

    found = models(shapes, formats, head, order, kv)
    results = run(found, one, prompts, gen, threads or [machine.usable_cores()], say, max(batch or [0]))
    return report.render(results, output, command_line())


@click.command("bench")
@click.option("--shape", "shapes", type=Names(), default="2b", show_default=True, help="Sizes of the random model.")
@click.option("--format", "formats", type=Names(), default="ternary", show_default=True, help="Of all its weights.")
@click.option("--head", default="", help="Format of the head and embedding.  Default: that of the other weights.")
@click.option("--order", default="auto", show_default=True, help="Kernel family: auto, mad, lut, trit5.")
@kv_option
@click.option("-p", "--prompt", "prompts", type=Counts(), default="128", show_default=True, help="Tokens to prefill.")
@click.option("-n", "--gen", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens to decode.")
@click.option("--threads", type=Counts(), help="Default: the cores this process may use.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Measured that often.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option("--kernels", is_flag=True, help="Take one decode step and one chunk of prefill apart instead.")
@click.option("--batch", type=Counts(), help="Steps of so many rows instead, as 1-8,16: tokens per second of a batch.")
@click.option("--rival", type=click.Path(path_type=Path), help="A llama-bench that runs in every round.")
@click.option("--rival-model", type=click.Path(path_type=Path), help="The GGUF file it runs.")
def command(**options: Any) -> None:
    """Measure tokens per second beside the roofs of this machine; no download.

    \b
    lutra bench --shape 2b --format ternary,planes4-g32 --threads 1,2     a row for each combination
    lutra bench --kernels                                                 where the time of a step goes
    lutra bench --batch 1-8,16,32                                         tokens per second over rows in a step

    Rates are the median of the rounds, half their interquartile range, and in brackets the best.
    """
    click.echo(bench(**options))
