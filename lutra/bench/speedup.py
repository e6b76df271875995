"""How wide times faster a low-bit model is than the same model with 16-bit weights, over the rows of a step.

Both run in the same process on the same threads, turn by turn, so that whatever slows the machine slows both.  At one
row the bytes read decide, and the ratio of bytes is the most there can be; with many rows the multiplications decide.

Source    the question, for GPUs: Frantar et al., MARLIN, arXiv 2408.11743, figure 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lutra.bench.case import Case, Model
from lutra.bench.curve import Point, Steps
from lutra.bench.measure import ROUNDS, Say, silent
from lutra.bench.row import Ratio
from lutra.compiler.launch import Workers

PROMPT = 32  # positions in the cache: enough to run attention, too few to hide the weights


@dataclass(frozen=True)
class Pair:
    """Steps of as many rows by a model of few bits and by one of 16, in the same rounds."""

    few: Point
    wide: Point

    @property
    def ratio(self) -> Ratio:
        return Ratio.of(self.few.seconds, self.wide.seconds)

    @property
    def name(self) -> str:
        return f"{self.few.case.model.format} {self.few.order}"

    @property
    def bytes_ratio(self) -> float:
        """The most that fewer bytes can give."""
        return self.wide.weight_bytes / self.few.weight_bytes


@dataclass(frozen=True)
class Line:
    """All models at one number of rows: a line of the table."""

    pairs: Sequence[Pair]

    def cells(self) -> dict[str, str]:
        """Heading → text: tokens per second of 16 bits, then how wide times faster each other model was."""
        wide = self.pairs[0].wide
        cells = {"threads": str(wide.case.threads), "rows": str(wide.rows)}
        cells |= {f"{wide.case.model.format} tok/s": f"{wide.tokens.median:.1f}"}
        return cells | {pair.name: f"{pair.ratio.median:.2f}" for pair in self.pairs}

    def numbers(self) -> dict[str, Any]:
        """The same as flat numbers, medians and bests."""
        wide = self.pairs[0].wide
        numbers: dict[str, Any] = {"threads": wide.case.threads, "rows": wide.rows}
        numbers |= {f"{wide.case.model.format}_tok_per_s": wide.tokens.median}
        for pair in self.pairs:
            numbers |= {f"{pair.name} {field}": value for field, value in asdict(pair.ratio).items()}
            numbers |= {f"{pair.name} tok_per_s": pair.few.tokens.median}
        return numbers


def speedups(
    models: Sequence[Model], wide: Model, threads: int, sizes: Sequence[int], rounds: int = ROUNDS, say: Say = silent
) -> list[list[Pair]]:
    """Time every model beside `wide`, one after the other; for each its pairs, one for each of `sizes` rows.

    Raises CapacityError when two models do not fit into memory.
    """
    workers, room = Workers(threads), PROMPT + max(sizes)

    def steps(model: Model) -> Steps:
        say(f"{model.shape} {model.format} {model.order}: making weights")
        return Steps(Case(model, PROMPT, 1, threads), model.make(room), sizes, workers)

    base = steps(wide)
    return [_compare(steps(model), base, sizes, rounds, say) for model in models]


def _compare(few: Steps, wide: Steps, sizes: Sequence[int], rounds: int, say: Say) -> list[Pair]:
    both = (few, wide)
    seconds: list[dict[int, list[float]]] = [{rows: [] for rows in sizes} for _ in both]
    for number in range(-1, rounds):
        say(f"{few.case.model.format}: round {number + 1} of {rounds}" if number >= 0 else "first round")
        for rows in sizes:
            for steps, taken in zip(both, seconds, strict=True):
                value = steps.time(rows)
                if number >= 0:
                    taken[rows].append(value)
    return [Pair(*(steps.point(rows, taken[rows]) for steps, taken in zip(both, seconds, strict=True)))
            for rows in sizes]  # fmt: skip


def lines(found: Sequence[Sequence[Pair]]) -> list[Line]:
    """The table: one line for each number of rows."""
    return [Line(pairs) for pairs in zip(*found, strict=True)]


def crossings(found: Sequence[Sequence[Pair]]) -> dict[str, int | None]:
    """For every format measured in mad order and another: from how wide rows on mad is the faster; None for never."""
    by_order: dict[str, dict[str, Sequence[Pair]]] = {}
    for pairs in found:
        by_order.setdefault(pairs[0].few.case.model.format, {})[pairs[0].few.order] = pairs
    return {
        f"{name} {order}": first_lead(
            {p.few.rows: p.ratio.median for p in orders["mad"]}, {p.few.rows: p.ratio.median for p in pairs}
        )
        for name, orders in by_order.items()
        if "mad" in orders
        for order, pairs in orders.items()
        if order != "mad"
    }


def first_lead(ours: Mapping[int, float], theirs: Mapping[int, float]) -> int | None:
    """The fewest rows from which on `ours` is nowhere below `theirs`."""
    lead = None
    for rows in sorted(ours, reverse=True):
        if ours[rows] < theirs[rows]:
            break
        lead = rows
    return lead
