"""Tokens per second over the rows of a step: what a batch of so many sequences would decode.

A step of M rows runs every layer and the head for all M, after the same number of cached positions.  The rows belong to
one sequence, as M tokens of it that follow each other; sequences of their own would read M caches instead of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lutra.bench import work
from lutra.bench.case import Case
from lutra.bench.measure import ROUNDS, Say, silent, some_tokens, timed
from lutra.bench.row import Rate, Seconds
from lutra.compiler.launch import Workers
from lutra.model.transformer import Transformer
from lutra.model.weights import Weights

STEPS = 3  # in a round


@dataclass(frozen=True)
class Point:
    """Steps of `rows` rows after case.prompt positions.  seconds is of each round of STEPS steps."""

    case: Case
    order: str
    rows: int
    weight_bytes: int
    operations: int
    seconds: Seconds

    @property
    def tokens(self) -> Rate:
        """Tokens per second, all rows together."""
        return Rate.of(self.rows * STEPS, self.seconds)

    @property
    def gb_per_s(self) -> Rate:
        """1e9 bytes of weights a second; they are read once for all rows."""
        return Rate.of(self.weight_bytes * STEPS / 1e9, self.seconds)

    @property
    def gops(self) -> Rate:
        """1e9 int8 operations a second."""
        return Rate.of(self.operations * STEPS / 1e9, self.seconds)

    def cells(self) -> dict[str, str]:
        """Heading → text of the table."""
        model = self.case.model
        return {
            "shape": model.shape,
            "format": model.format,
            "order": self.order,
            "threads": str(self.case.threads),
            "rows": str(self.rows),
            "tok/s": str(self.tokens),
            "GB/s": str(self.gb_per_s),
            "Gop/s": str(self.gops),
        }

    def numbers(self) -> dict[str, Any]:
        """The same as flat numbers."""
        case = self.case
        numbers: dict[str, Any] = {**asdict(case.model), "order": self.order, "threads": case.threads}
        numbers |= {"prompt": case.prompt, "rows": self.rows, "rounds": len(self.seconds)}
        numbers |= {"weight_bytes": self.weight_bytes, "operations": self.operations}
        rates = {"tok_per_s": self.tokens, "gb_per_s": self.gb_per_s, "gops": self.gops}
        for name, rate in rates.items():
            numbers |= {f"{name}_{field}": number for field, number in asdict(rate).items()}
        return numbers


def dips(points: Sequence[Point]) -> list[tuple[int, float]]:
    """Where one curve falls: rows whose median of tokens per second is below that of fewer rows, and their ratio."""
    found, most = [], 0.0
    for point in points:
        ratio = point.tokens.median / most if most else 1.0
        if ratio < 1:
            found.append((point.rows, ratio))
        most = max(most, point.tokens.median)
    return found


class Steps:
    """A model that can run steps of each of `sizes` rows after case.prompt positions."""

    def __init__(self, case: Case, weights: Weights, sizes: Sequence[int], workers: Workers | None = None):
        most = max(sizes)
        self.case, self.weights = case, weights
        self._transformer = Transformer(
            case.model.config,
            weights,
            workers or Workers(case.threads),
            case.prompt + most,
            chunk=most,
            all_logits=True,
            kv=case.model.kv,
        )
        self._programs = {rows: self._transformer.batch_program(rows) for rows in sizes}
        self._tokens = some_tokens(most, case.model.config.vocab_size)

    def time(self, rows: int) -> float:
        """Seconds that STEPS steps of `rows` rows take."""
        return timed(lambda: self._run(rows))

    def point(self, rows: int, seconds: Seconds) -> Point:
        """What the times of some rounds say."""
        found = work.linears(self.weights).values()
        operations = rows * sum(work.operations(linear, 1) for linears in found for linear in linears)
        order = self.weights.layers[0].o.weight.order
        return Point(self.case, order, rows, self.weights.bytes_per_token, operations, seconds)

    def _run(self, rows: int) -> None:
        for _ in range(STEPS):
            self._transformer.run_batch(self._programs[rows], self._tokens[:rows], self.case.prompt)


def curve(case: Case, weights: Weights, sizes: Sequence[int], rounds: int = ROUNDS, say: Say = silent) -> list[Point]:
    """Time steps of each of `sizes` rows, in alternation; case.gen is not used."""
    steps, seconds = Steps(case, weights, sizes), {rows: list[float]() for rows in sizes}
    for number in range(-1, rounds):
        say(f"round {number + 1} of {rounds}" if number >= 0 else "compiling kernels, first round")
        for rows in sizes:
            taken = steps.time(rows)
            if number >= 0:
                seconds[rows].append(taken)
    return [steps.point(rows, seconds[rows]) for rows in sizes]
