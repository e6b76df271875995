"""One kind of weight set up to be timed: random weights, buffers, and programs that multiply in different ways."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lutra import machine
from lutra.compiler import targets
from lutra.compiler.launch import Program, Step, Workers
from lutra.kernels import choose, matmul_trit, norm, stored
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import aligned
from lutra.kernels.plan import Plan, plan_for, shapes
from lutra.kernels.tiles import TiledWeight, round_up
from lutra.model.kinds import Kind
from lutra.model.program import Scratch
from lutra.model.random import random_weight

MANY_N = 8192  # rows of a weight measured with many rows of activations: time is linear in them
STREAM_BYTES = 256 << 20  # of weights measured, at most
SECONDS, ROUNDS = 0.12, 5  # of one comparison, and runs at least


@dataclass(frozen=True)
class Option:
    """Rows of activations per task, and the plan where the family has one."""

    tile_m: int
    plan: Plan | None

    def __str__(self) -> str:
        p = self.plan
        plan = "" if p is None else f" tiles {p.tiles} sums {p.accumulators} unroll {p.unroll} ahead {p.prefetch_bytes}"
        plan += "" if p is None else f" {p.second_bytes}" * (p.second_bytes > 0) + " in place" * p.in_place
        plan += "" if p is None else " squares" * p.squares + " half" * (p.lanes == 8)
        return f"rows {self.tile_m}{plan}"


@dataclass(frozen=True)
class Alternation:
    """Times programs in alternation, so that whatever else the computer does meets all of them."""

    workers: Workers
    seconds: float = SECONDS

    def __call__(self, programs: Sequence[Program], rows: int) -> list[list[float]]:
        """Seconds of each program in every round."""
        rounds: list[list[float]] = []
        end = time.perf_counter() + self.seconds
        while len(rounds) < ROUNDS or time.perf_counter() < end:
            rounds.append([self._run(program, rows) for program in programs])
        return [list(times) for times in zip(*rounds, strict=True)]

    def _run(self, program: Program, rows: int) -> float:
        started = time.perf_counter()
        self.workers.run(program, rows)
        return time.perf_counter() - started


class Trial:
    """Random weights of one kind in the order of a family, and buffers for `rows` rows.

    So many weights lie side by side that no cache holds them, but no more than `most`, which make up the model: a large
    model streams its weights from memory, a small one does not.
    """

    def __init__(self, kind: Kind, order: str, rows: int, most: int):
        self.order, self.rows, self.n = order, rows, kind.n if rows == 1 else min(kind.n, MANY_N)
        weight = random_weight(kind.format, self.n, kind.k, order)
        uncached = min(2 * max(cache.size_bytes for cache in machine.caches()), STREAM_BYTES)
        wanted = min(most, -(-uncached // weight.num_bytes)) if rows == 1 else 1
        self.copies = [weight, *(_copied(weight) for _ in range(wanted - 1))]
        padded = round_up(rows, 16)
        self.x = aligned((padded, round_up(weight.padded_k, 128)), np.float32)
        self.x[:, : kind.k] = 1
        self.y = aligned((padded, round_up(weight.padded_n, 128)), np.float32)
        self.state = np.array([rows, 0, 0, rows], np.int64)
        self.source = self.x if weight.order == "dense" else Scratch(padded).of(weight, self.x)
        self.first = self._matmul(weight, Option(1, plan_for(order, targets.choose().isa, 1)))

    def program(self, option: Option) -> Program:
        """Every copy with its inputs: what a family needs before it multiplies is part of its time."""
        inputs = self._inputs(option)
        return Program([step for weight in self.copies for step in (*inputs, self._matmul(weight, option))])

    def weight_us(self, seconds: Sequence[float]) -> float:
        """Microseconds of one weight, from the seconds of a program in every round."""
        return 1e6 * min(seconds) / len(self.copies)

    def example(self, option: Option) -> tuple[Step, dict[str, Any]]:
        """A launch of the kernel that an option takes, and what that kernel is specialised with.

        Families with plans have many options, and their kernel is not compiled for each.
        """
        if option.plan is None:
            step = self._matmul(self.copies[0], option)
            return step, step.launch.static
        return self.first, {**self.first.launch.static, "tile_m": option.tile_m, "plan": option.plan}

    def _inputs(self, option: Option) -> list[Step]:
        source = self.source
        if not isinstance(source, Activations):
            return []
        steps = [norm.bind_quantize(self.x, source, self.state, width=self.copies[0].k)]
        if source.trits is not None:
            steps += matmul_trit.bind_inputs(source, self.state, [option.tile_m])
        return steps

    def _matmul(self, weight: TiledWeight, option: Option) -> Step:
        shape = {"shape": option.plan} if shapes(weight.order, targets.choose().isa, option.tile_m) else {}
        family, buffers = choose.FAMILIES[weight.order], (self.source, self.y, self.state)
        step: Step = family.bind(weight, *buffers, epilogue="store", tile_m=option.tile_m, **shape)
        return step


def _copied(weight: TiledWeight) -> TiledWeight:
    """The same weight elsewhere in memory; scales and the like too."""

    def copied(values: np.ndarray) -> np.ndarray:
        out = aligned(values.shape, values.dtype)
        out[:] = values
        return out

    return replace(weight, **{name: copied(getattr(weight, name)) for name in stored.ARRAYS})
