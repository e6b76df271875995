"""Find the fastest way to multiply by each kind of weight of a model on this computer: seconds, not minutes.

For each kind of weight, each kernel family that takes it, and each use (one row, or a chunk of a prompt):

1. list plans and row blocks, and leave out those that the cost model (compiler/cost.py) or the registers speak against;
2. run the others in alternation on random weights, as many as make up the model, or as no cache holds;
3. run the best of them with other distances of prefetching, beside the plan of the table, and keep what wins clearly:
   in its best round, and in most of the rounds that both were run in, for other programs slow some rounds down;
4. run the best of every family in alternation: kernels/tuned.py chooses among families by these times.

Everything found gives the same bits as the tables' choice, so tuning changes speed and never a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import truediv
from statistics import median

import numpy as np

from lutra import machine
from lutra.compiler import cost, targets
from lutra.compiler.launch import Program, Workers
from lutra.formats.format import Format
from lutra.kernels import choose, tuned
from lutra.kernels.plan import Plan, distances, shapes
from lutra.kernels.tuned import DECODE, PREFILL, Choice
from lutra.model.kinds import Kind
from lutra.model.transformer import CHUNK
from lutra.model.trial import Alternation, Option, Trial

ROWS = {DECODE: 1, PREFILL: CHUNK}
SLOWER = 1.5  # predicted slower than the best by this factor: not tried
WINS = 0.97  # of the table's time: what is less different may be noise

BUSY = 2.5  # times what was predicted: other programs took the computer away, and nothing can be concluded

# Bytes of vector registers: sums that find no room are spilled, which costs more than any plan gains.
REGISTER_BYTES = {
    "avx512": 32 * 64, "avxvnni": 16 * 32, "avx2": 16 * 32, "i8mm": 32 * 16, "dotprod": 32 * 16, "neon": 32 * 16,
    "portable": 16 * 16,
}  # fmt: skip

Progress = Callable[[str, int, int], None]  # progress(label, done, total)
Clock = Callable[[Sequence[Program], int], list[list[float]]]  # (programs, rows) → seconds of each in every round


@dataclass(frozen=True)
class Finding:
    """What a search ended with.

    usual, best    option of the table, and the best one: the table's where no other clearly wins
    ..._us         microseconds of one weight, measured; predicted for the best with all weights in memory
    row_us         those of the best, beside the other families, per row of activations
    """

    order: str
    kind: Kind
    use: str
    usual: Option
    best: Option
    usual_us: float
    best_us: float
    predicted_us: float
    row_us: float

    @property
    def is_disturbed(self) -> bool:
        """Whether the computer was too busy, by the cost model, for the times to mean anything."""
        return max(self.usual_us, self.best_us, self.row_us * ROWS[self.use]) > BUSY * self.predicted_us

    @property
    def choice(self) -> Choice:
        sizes = (self.order, self.kind.name, self.kind.n, self.kind.k)
        return Choice(*sizes, self.use, self.best.tile_m, self.best.plan, self.row_us)

    def cells(self) -> dict[str, str]:
        """Heading → text of the table."""
        after = "the same" if self.best == self.usual else str(self.best)
        after = "unknown: the computer is busy" if self.is_disturbed else after
        return {
            "kernel": f"{self.order} {self.kind.name} {self.kind.n}x{self.kind.k}",
            "use": self.use,
            "before": str(self.usual),
            "after": after,
            "µs before": f"{self.usual_us:.1f}",
            "µs after": f"{self.best_us:.1f}",
            "gain": "-" if self.is_disturbed else f"{100 * (self.usual_us / self.best_us - 1):.0f} %",
            "µs predicted": f"{self.predicted_us:.1f}",
        }


def tune(
    kinds: Sequence[Kind],
    threads: int,
    progress: Progress,
    clock: Clock | None = None,
    roof: machine.Roof | None = None,
) -> list[Finding]:
    """Search for every kind of weight, and store what was found, undisturbed, for the models loaded from now on.

    clock   times programs; default: in alternation on `threads` threads
    roof    limits of the machine; default: those measured last
    """
    search = Search(clock or Alternation(Workers(threads)), roof or machine.roof(), threads > 1)
    cases = [(kind, use) for kind in kinds for use in kind.uses]
    model_size = sum(kind.count * kind.n * kind.k for kind in kinds)
    findings = []
    for done, (kind, use) in enumerate(cases):
        progress(f"{kind.name} {kind.n}x{kind.k} {use}", done, len(cases))
        findings += search.families(kind, use, -(-model_size // (kind.n * kind.k)))
    tuned.write(targets.choose().isa, [finding.choice for finding in findings if not finding.is_disturbed])
    progress("done", len(cases), len(cases))
    return findings


def families(kinds: Sequence[Kind]) -> list[str]:
    """What each kind of weight that several families take is multiplied with from now on, in words."""
    return [_family(kind, kind.format) for kind in kinds if isinstance(kind.format, Format) and len(kind.families) > 1]


def _family(kind: Kind, format: Format) -> str:
    usual, chosen = kind.families[0], choose.family(format, kind.n, kind.k)
    return f"{kind.name} {kind.n}x{kind.k}: {chosen}" + (f" instead of {usual}" if chosen != usual else "")


@dataclass(frozen=True)
class Search:
    """How to time, and the roofs that leave hopeless options out."""

    clock: Clock
    roof: machine.Roof
    on_all_cores: bool

    def families(self, kind: Kind, use: str, most: int) -> list[Finding]:
        """The best option of every family for one use, in a model of the size of `most` such weights."""
        trials = [Trial(kind, order, ROWS[use], most) for order in kind.families]
        found = [self.find(kind, use, trial) for trial in trials]
        if len(found) == 1:
            return found
        rounds = self.clock([t.program(one.best) for t, one in zip(trials, found, strict=True)], ROWS[use])
        times = [kind.n / t.n * t.weight_us(seconds) / ROWS[use] for t, seconds in zip(trials, rounds, strict=True)]
        return [replace(one, row_us=row_us) for one, row_us in zip(found, times, strict=True)]

    def find(self, kind: Kind, use: str, trial: Trial) -> Finding:
        """The best option of one family."""
        order, isa = trial.order, targets.choose().isa
        blocks = [1] if use == DECODE else list(choose.row_blocks(order, isa)[1:])
        usual, *others = [Option(m, plan) for m in reversed(blocks) for plan in _plans(order, isa, m)]
        options = [usual, *self.promising(trial, usual, others, isa)]
        best = self.fastest(trial, options)[0] if len(options) > 1 else usual
        ahead: list[Plan | None] = [*distances(best.plan)] if best.plan else [None]
        best, usual_us, best_us = self.fastest(trial, [usual, *(Option(best.tile_m, plan) for plan in ahead)])
        scale = kind.n / trial.n
        usual_us, best_us = scale * usual_us, scale * best_us
        predicted_us = scale * self.predict(trial, best).time_us
        return Finding(order, kind, use, usual, best, usual_us, best_us, predicted_us, best_us / trial.rows)

    def fastest(self, trial: Trial, options: Sequence[Option]) -> tuple[Option, float, float]:
        """The option that clearly beats the first, or the first; microseconds of one weight, of the first and of it."""
        options = list(dict.fromkeys(options))
        rounds = self.clock([trial.program(option) for option in options], trial.rows)
        best = min(range(len(options)), key=lambda i: min(rounds[i]))
        if not is_faster(rounds[best], rounds[0]):
            best = 0
        return options[best], trial.weight_us(rounds[0]), trial.weight_us(rounds[best])

    def promising(self, trial: Trial, usual: Option, others: Sequence[Option], isa: str) -> list[Option]:
        """Options whose sums fit into registers and whose predicted time is not far from the best."""
        predicted = {option: self.predict(trial, option) for option in (usual, *others)}
        registers = REGISTER_BYTES[targets.named(isa).vectors]
        limit = SLOWER * min(found.time_us for found in predicted.values())
        return [
            option
            for option in others
            if predicted[option].time_us <= limit and predicted[option].live_bytes <= registers
        ]

    def predict(self, trial: Trial, option: Option) -> Predicted:
        """What the cost model says of an option."""
        step, static = trial.example(option)
        traced = step.launch.kernel.trace(**static)
        args = step.launch.args
        numbers = {name: value for name, value in args.items() if isinstance(value, int)}
        sizes = {name: value.nbytes for name, value in args.items() if isinstance(value, np.ndarray)}
        work = cost.work(traced, numbers)
        tasks = step.tasks * -(-trial.rows // option.tile_m)
        r = self.roof
        rates = (r.gb_per_s, r.int8_gops) if self.on_all_cores else (r.gb_per_s_one, r.int8_gops_one)
        return Predicted(cost.predict_us(work, tasks, sizes, *rates), work.live_bytes)


def is_faster(seconds: Sequence[float], usual: Sequence[float]) -> bool:
    """Tell a gain from noise: clear in the best round and, both of a round compared, in the middle of all."""
    return min(seconds) < WINS * min(usual) and median(map(truediv, seconds, usual)) < WINS


@dataclass(frozen=True)
class Predicted:
    """Microseconds under the roofs, and bytes of sums."""

    time_us: float
    live_bytes: int


def _plans(order: str, isa: str, tile_m: int) -> list[Plan | None]:
    """Shapes to try, the table's first; None alone for a family without plans."""
    return [*shapes(order, isa, tile_m)] or [None]
