"""What the scripts of this folder share: their options, and printing a table of measured models."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lutra import machine
from lutra.bench import report
from lutra.bench.case import Case, Model
from lutra.bench.measure import Say, measure
from lutra.bench.rival import Rival
from lutra.bench.run import run
from lutra.errors import LutraError
from lutra.model.weights import Weights


def counts(text: str) -> list[int]:
    """Whole numbers joined by commas."""
    return [int(word) for word in text.split(",")]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", default="2b")
    options.add_argument("--threads", type=counts, default=[machine.usable_cores()])
    options.add_argument("--rounds", type=int, default=5)
    return options


def parse(description: str | None, prompts: str, gen: int) -> argparse.Namespace:
    """Read the options of a table of models."""
    options = parser(description)
    options.add_argument("--prompt", dest="prompts", type=counts, default=counts(prompts))
    options.add_argument("--gen", type=int, default=gen)
    options.add_argument("--rival", type=Path, help="a llama-bench")
    options.add_argument("--rival-model", type=Path, help="the GGUF file it runs; see make_gguf.py")
    found = options.parse_args()
    if (found.rival is None) != (found.rival_model is None):
        options.error("expected --rival and --rival-model together")
    return found


def say(message: str) -> None:
    """A line of progress on stderr."""
    print(message, file=sys.stderr, flush=True)


def guarded(work: Callable[[], str]) -> None:
    """Print what `work` returns; an error that the user can mend becomes one line."""
    try:
        print(work())
    except LutraError as error:
        sys.exit(f"error: {error}")


def command() -> str:
    """The command that is running."""
    return shlex.join(["python", *sys.argv])


def show(models: Sequence[Model], options: argparse.Namespace) -> None:
    """Measure the models and print the table."""

    def work() -> str:
        rival = Rival(options.rival, options.rival_model) if options.rival else None

        def one(case: Case, weights: Weights, tell: Say) -> Sequence[report.Result]:
            return [measure(case, weights, options.rounds, rival, tell)]

        results = run(models, one, options.prompts, options.gen, options.threads, say)
        return report.render(results, "table", command())

    guarded(work)
