"""Many cases one after the other: the weights of a model are made once, for all its threads and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lutra.bench.case import Case, Model, cases
from lutra.bench.measure import Say, silent
from lutra.bench.report import Result
from lutra.model.weights import Weights

Measure = Callable[[Case, Weights, Say], Sequence[Result]]  # what to do with one case


def run(
    models: Sequence[Model], measure: Measure, prompts: Sequence[int], gen: int, threads: Sequence[int],
    say: Say = silent, room: int = 0,
) -> list[Result]:  # fmt: skip
    """Measure every combination of model, threads and prompt.

    room   positions that `measure` may use after a prompt, if more than gen
    Raises CapacityError for a model that does not fit into memory, when its turn comes.
    """
    results: list[Result] = []
    for model in models:
        say(f"{model.shape} {model.format} {model.order}: making weights")
        weights = model.make(max(prompts) + max(gen, room))
        for case in cases(model, prompts, gen, threads):
            label = f"{model.shape} {model.format} {model.order}, {case.threads} threads, {case.prompt} tokens: "

            def tell(message: str, label: str = label) -> None:
                say(label + message)

            results += measure(case, weights, tell)
        del weights  # before the next is made
    return results
