"""One decode step and one chunk of prefill taken apart: the time of every launch, by kind, beside the roofs.

Every launch is run alone, in the order of the step, so that its weights come from memory as they do in a whole step.
An empty program tells what starting the threads costs; that much is taken off each.  What the whole step takes, less
the sum, is what stands between launches: it is about nothing, or less than that where a launch starts while the last
pieces of the one before it are still being written.

All figures are bests of many passes: a launch of microseconds is seldom disturbed, and the question is what it costs,
not how busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lutra import machine
from lutra.bench import work
from lutra.bench.case import Case
from lutra.bench.measure import ROUNDS, Say, fastest, silent, some_tokens, timed
from lutra.compiler.launch import Program, Step, Workers
from lutra.model.transformer import CHUNK, Transformer
from lutra.model.weights import Linear, Weights

PASSES = 3  # over a step, per round
SUM, WHOLE, BETWEEN = "all launches", "whole step", "between launches"


@dataclass(frozen=True)
class Roofs:
    """Rates of this run: 1e9 bytes read and 1e9 int8 operations a second."""

    gb_per_s: float
    gops: float


@dataclass(frozen=True)
class LaunchKind:
    """All launches of one kind in one step.

    step         what it is part of: "decode" or "prefill of 64"
    name, kernel place in the model, and the function that runs there; "" for sums
    count        launches
    us           microseconds in all, each launch in its best pass
    whole_us     microseconds of the whole step
    num_bytes    of weights, or of keys and values, that must be read
    operations   int8 operations
    """

    step: str
    name: str
    kernel: str
    count: int
    us: float
    whole_us: float
    num_bytes: int
    operations: int
    roofs: Roofs

    @property
    def gb_per_s(self) -> float:
        return self.num_bytes / self.us / 1e3

    @property
    def gops(self) -> float:
        return self.operations / self.us / 1e3

    def cells(self) -> dict[str, str]:
        """Heading → text of the table."""
        read, multiplied = self.num_bytes > 0 and self.us > 0, self.operations > 0 and self.us > 0
        return {
            "step": self.step,
            "launch": self.name,
            "kernel": self.kernel or "-",
            "launches": str(self.count) if self.count else "-",
            "µs": f"{self.us:.0f}",
            "% of step": f"{100 * self.us / self.whole_us:.1f}",
            "GB/s": f"{self.gb_per_s:.1f}" if read else "-",
            "% of read roof": f"{100 * self.gb_per_s / self.roofs.gb_per_s:.0f}" if read else "-",
            "Gop/s": f"{self.gops:.0f}" if multiplied else "-",
            "% of int8 peak": f"{100 * self.gops / self.roofs.gops:.0f}" if multiplied else "-",
        }

    def numbers(self) -> dict[str, Any]:
        """The same as flat numbers."""
        flat = asdict(self)
        return flat | {f"roof_{name}": value for name, value in flat.pop("roofs").items()}


@dataclass(frozen=True)
class Cost:
    """What one launch is and must do."""

    name: str
    kernel: str
    num_bytes: int
    operations: int


def launches(case: Case, weights: Weights, rounds: int = ROUNDS, say: Say = silent) -> list[LaunchKind]:
    """Take a decode step after case.prompt tokens apart, then the prompt's last chunk."""
    config, workers = case.model.config, Workers(case.threads)
    transformer = Transformer(config, weights, workers, case.prompt + 1, kv=case.model.kv)
    rows = min(case.prompt, CHUNK)
    position_bytes = work.position_bytes(config, transformer)
    layer_bytes = position_bytes // config.num_layers
    read = fastest(machine.read_programs(weights.bytes_per_token + position_bytes * case.prompt), workers)
    read_bytes = machine.bytes_read(read)
    operations = work.prefill_operations(weights, rows)
    multiply = machine.multiply_program(operations)
    tokens = some_tokens(case.prompt, config.vocab_size)
    transformer.prefill(tokens, 0)
    steps: list[tuple[str, Program, int, Callable[[], object], int]] = [
        ("decode", transformer.decode_program, 1, lambda: transformer.decode(1, case.prompt), case.prompt + 1),
        (f"prefill of {rows}", transformer.prefill_program, rows,
         lambda: transformer.prefill(tokens[-rows:], case.prompt - rows), case.prompt),
    ]  # fmt: skip
    if rows == 1:
        del steps[1]
    found: list[LaunchKind] = []
    for name, program, num_rows, enter, positions in steps:
        say(f"launches of {name}")
        enter()  # fills the step's state; running its program again repeats it
        costs = [cost_of(step, weights, num_rows, layer_bytes * positions) for step in program.steps]
        timing = time_steps(program, workers, num_rows, rounds * PASSES, read, multiply)
        roofs = Roofs(read_bytes / timing.read_s / 1e9, operations / timing.multiply_s / 1e9)
        found += kinds(name, costs, timing, roofs)
    return found


@dataclass(frozen=True)
class Timing:
    """Best seconds of all passes: of each launch less an empty one, of the whole step, of the roofs."""

    launch_s: Sequence[float]
    whole_s: float
    read_s: float
    multiply_s: float


def time_steps(program: Program, workers: Workers, rows: int, passes: int, read: Program, multiply: Program) -> Timing:
    """Time the launches one by one, the whole, and the roofs, in alternation."""
    alone, empty = [Program([step]) for step in program.steps], Program([])
    launch_s, whole_s, read_s, multiply_s = [], [], [], []
    for number in range(-1, passes):
        nothing_s = min(timed(lambda: empty.run(workers, rows)) for _ in range(len(alone)))
        each = [max(0.0, timed(lambda p=one: p.run(workers, rows)) - nothing_s) for one in alone]
        roofs = [timed(lambda p=roof: p.run(workers, 0)) for roof in (read, multiply)]
        whole = timed(lambda: program.run(workers, rows))
        if number >= 0:
            launch_s.append(each)
            whole_s.append(whole)
            read_s.append(roofs[0])
            multiply_s.append(roofs[1])
    return Timing([min(times) for times in zip(*launch_s, strict=True)], min(whole_s), min(read_s), min(multiply_s))


def cost_of(step: Step, weights: Weights, rows: int, cache_bytes: int) -> Cost:
    """What a launch must do at least: a matmul reads its weight, attention one layer's keys and values."""
    kernel = step.launch.kernel.name
    if kernel.startswith("attention"):
        return Cost("attention", kernel, cache_bytes, 0)
    found = _linear(step, weights) if kernel.startswith("matmul") else None
    if found is None:
        return Cost(kernel, kernel, 0, 0)
    place, linear = found
    return Cost(place, kernel, linear.weight.num_bytes, work.operations(linear, rows))


def _linear(step: Step, weights: Weights) -> tuple[str, Linear] | None:
    """The matrix whose codes a launch is bound to, and its place."""
    codes = step.launch.args["codes"]
    return next(
        (
            (place, linear)
            for place, found in work.linears(weights).items()
            for linear in found
            if linear.weight.codes is codes
        ),
        None,
    )


def kinds(step: str, costs: Sequence[Cost], timing: Timing, roofs: Roofs) -> list[LaunchKind]:
    """Add launches up by kind, in the order of the step; then all of them, the whole step, and the difference."""
    whole_us = timing.whole_s * 1e6
    found = []
    for key in dict.fromkeys((cost.name, cost.kernel) for cost in costs):
        chosen = [i for i, cost in enumerate(costs) if (cost.name, cost.kernel) == key]
        us = 1e6 * sum(timing.launch_s[i] for i in chosen)
        num_bytes, operations = (sum(getattr(costs[i], f) for i in chosen) for f in ("num_bytes", "operations"))
        found.append(LaunchKind(step, *key, len(chosen), us, whole_us, num_bytes, operations, roofs))
    num_bytes, operations = sum(cost.num_bytes for cost in costs), sum(cost.operations for cost in costs)
    sum_us = 1e6 * sum(timing.launch_s)
    totals = [(SUM, len(costs), sum_us, num_bytes, operations), (BETWEEN, 0, whole_us - sum_us, 0, 0),
              (WHOLE, 0, whole_us, num_bytes, operations)]  # fmt: skip
    for name, count, us, total_bytes, total_operations in totals:
        found.append(LaunchKind(step, name, "", count, us, whole_us, total_bytes, total_operations, roofs))
    return found
