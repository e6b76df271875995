"""What stands between the matmuls of a decode step: the step, and the same without some of its launches.

    python bench/between.py [--shape 2b] [--format ternary] [--threads 1,2] [--rounds 60]

Prints Markdown.  Every layer is a program of its own and counts with its best round: a millisecond is often enough
undisturbed, a whole step seldom.  "nothing asked ahead" is the whole layer with waiting threads that do not prefetch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import tables

from lutra.bench import report
from lutra.bench.case import Model
from lutra.bench.measure import timed
from lutra.compiler.launch import Program, Step, Workers
from lutra.model.transformer import Transformer
from lutra.model.weights import Weights

POSITIONS = 128  # in the cache


def is_matmul(step: Step) -> bool:
    return step.launch.kernel.name.startswith("matmul")


def blind(step: Step) -> Step:
    """The step with nothing to ask ahead for."""
    return replace(step, stream=None)


def without(name: str) -> Callable[[Sequence[Step]], list[Step]]:
    return lambda steps: [step for step in steps if not step.launch.kernel.name.startswith(name)]


VARIANTS: dict[str, Callable[[Sequence[Step]], list[Step]]] = {
    "whole layers": list,
    "nothing asked ahead": lambda steps: [blind(step) for step in steps],
    "without quantising": without("quantize"),
    "without attention": without("attention"),
    "without rotating and storing keys": without("rope"),
    "matmuls alone": lambda steps: [step for step in steps if is_matmul(step)],
}


def layers(transformer: Transformer) -> list[list[Step]]:
    """The launches of each layer of a decode step."""
    count, steps = transformer.config.num_layers, transformer.prefill_program.steps[1:]  # after the embedding
    each = len(steps) // count
    return [transformer.decode_program.steps[1 + i * each : 1 + (i + 1) * each] for i in range(count)]


def best_us(model: Model, weights: Weights, threads: int, rounds: int) -> dict[str, float]:
    """Microseconds of all layers, each in its best round, for every variant."""
    workers = Workers(threads)
    transformer = Transformer(model.config, weights, workers, POSITIONS + 1)
    transformer.prefill([1] * POSITIONS, 0)
    transformer.decode(1, POSITIONS)
    found = layers(transformer)
    programs = {name: [Program(choose(steps)) for steps in found] for name, choose in VARIANTS.items()}
    best = {name: [float("inf")] * len(found) for name in VARIANTS}
    for _ in range(rounds):
        for name, each in programs.items():
            taken = [timed(lambda p=program: p.run(workers, 1)) for program in each]
            best[name] = [min(pair) for pair in zip(best[name], taken, strict=True)]
    workers.close()
    return {name: 1e6 * sum(times) for name, times in best.items()}


def main() -> None:
    options = tables.parser(__doc__)
    options.set_defaults(rounds=60)
    options.add_argument("--format", default="ternary")
    options.add_argument("--order", default="auto")
    chosen = options.parse_args()

    def work() -> str:
        model = Model(chosen.shape, chosen.format, order=chosen.order)
        weights, rows = model.make(POSITIONS + 1), []
        for threads in chosen.threads:
            tables.say(f"{threads} threads")
            found = best_us(model, weights, threads, chosen.rounds)
            whole = found["whole layers"]
            for name, us in found.items():
                cells = {"threads": str(threads), "of a decode step": name, "µs": f"{us:.0f}"}
                cells |= {"less than whole, µs": f"{whole - us:.0f}", "%": f"{100 * (whole - us) / whole:.1f}"}
                rows.append(cells)
        return "\n".join([report.machine_line(), tables.command(), "", report.to_table(rows)])

    tables.guarded(work)


if __name__ == "__main__":
    main()
