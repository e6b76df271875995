"""Blocks of one matrix in two widths: any average number of bits, decided by what matters, without a search.

    salience   of a weight: w**2 times the mean square of its input
    order      columns and rows are sorted by the sum of their salience, so that a block is important or it is not
    widths     one threshold for all matrices of a model: blocks above it get ceil(bits), the others floor(bits), and
               the average is the one asked for

A block is 512 rows by 128 columns, a whole number of groups.  Stored is one QTensor for each width of a run of rows,
its columns those of the blocks of that width side by side, and both orders.

Source   SFMP, arXiv 2602.01027 (by the authors of ELUTQ)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.rounding import as_finite_f32

BLOCK_ROWS, BLOCK_COLUMNS = 512, 128


@dataclass(frozen=True)
class Plan:
    """Widths of one matrix.

    rows     int [N]     row i of the sorted matrix is row rows[i] of the weight; columns int [K] likewise
    widths   uint8 [ceil(N / block rows), ceil(K / block columns)]
    block    (rows, columns)
    """

    rows: np.ndarray
    columns: np.ndarray
    widths: np.ndarray
    block: tuple[int, int]

    def average(self) -> float:
        """Return bits per weight, scales left out."""
        return float((self.widths * _areas((len(self.rows), len(self.columns)), self.block)).sum()) / (
            len(self.rows) * len(self.columns)
        )


@dataclass(frozen=True)
class Piece:
    """Some columns of a run of rows in one width.

    first    row of the sorted matrix          columns  int [k], of the sorted matrix
    """

    first: int
    columns: np.ndarray
    weight: QTensor


@dataclass(frozen=True)
class MixedWeight:
    """A weight [N, K] in pieces."""

    plan: Plan
    pieces: tuple[Piece, ...]

    def dequantize(self) -> np.ndarray:
        """Return f32 [N, K] in the order of the weight."""
        values = np.empty((len(self.plan.rows), len(self.plan.columns)), np.float32)
        for piece in self.pieces:
            rows = self.plan.rows[piece.first : piece.first + piece.weight.shape[0]]
            values[np.ix_(rows, self.plan.columns[piece.columns])] = piece.weight.dequantize()
        return values

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces; the two orders and the widths are left out."""
        return sum(piece.weight.nbytes for piece in self.pieces)


def salience(w: np.ndarray, mean_squares: np.ndarray | None = None) -> np.ndarray:
    """Return how much each weight matters, f32 [N, K]: w**2 times the mean square of its input, if that is known."""
    square = as_finite_f32(w) ** 2
    return square if mean_squares is None else square * mean_squares.astype(np.float32)


def plan(
    saliences: Mapping[str, np.ndarray], bits: float, block: tuple[int, int] = (BLOCK_ROWS, BLOCK_COLUMNS)
) -> dict[str, Plan]:
    """Decide the width of every block of all matrices.

    saliences  name -> f32 [N, K], >= 0
    bits       average wanted, 1 to 7; the plan has at most that many
    raises     FormatError   no matrices, bits out of range

    >>> decided = plan({"w": np.array([[9.0, 1.0, 0.0, 8.0]])}, 2.5, block=(1, 2))["w"]
    >>> decided.columns.tolist(), decided.widths.tolist(), decided.average()
    ([0, 3, 1, 2], [[3, 2]], 2.5)
    """
    if not saliences or not 1 <= bits <= 7:
        raise FormatError(f"expected some matrices and 1 to 7 bits, got {len(saliences)} and {bits}; choose others")
    orders = {name: (_descending(s.sum(1)), _descending(s.sum(0))) for name, s in saliences.items()}
    means, areas = {}, {}
    for name, (rows, columns) in orders.items():
        areas[name] = _areas(saliences[name].shape, block)
        means[name] = _block_sums(saliences[name][np.ix_(rows, columns)], block) / areas[name]
    low = math.floor(bits)
    extra = _fill(
        np.concatenate([m.ravel() for m in means.values()]),
        np.concatenate([a.ravel() for a in areas.values()]),
        bits - low,
    )
    plans, at = {}, 0
    for name, (rows, columns) in orders.items():
        more = extra[at : at + means[name].size].reshape(means[name].shape)
        plans[name] = Plan(rows, columns, (low + more).astype(np.uint8), block)
        at += more.size
    return plans


def quantize(w: np.ndarray, plan: Plan, format_of: Callable[[int], Format],
             quantise: Callable[[np.ndarray, Format], QTensor]) -> MixedWeight:  # fmt: skip
    """Quantise every block in its width.

    w          float [N, K]
    format_of  the format of a width, e.g. lambda bits: catalog.planes(bits, 64, offset="mins")
    quantise   any quantiser of the weight alone
    raises     FormatError   a plan of another shape, groups that do not divide a block
    """
    w = as_finite_f32(w)
    block_rows, block_columns = plan.block
    if w.shape != (len(plan.rows), len(plan.columns)):
        raise FormatError(
            f"expected a weight [{len(plan.rows)}, {len(plan.columns)}], got {list(w.shape)}; plan it anew"
        )
    pieces = []
    for run, widths in enumerate(plan.widths):
        rows = w[plan.rows[run * block_rows : (run + 1) * block_rows]][:, plan.columns]
        owner = np.repeat(widths, block_columns)[: w.shape[1]]
        for bits in np.unique(widths):
            form, columns = format_of(int(bits)), np.flatnonzero(owner == bits)
            if not form.group_size or block_columns % form.group_size:
                raise FormatError(
                    f"{form.name}: expected groups that divide blocks of {block_columns} columns; use others"
                )
            pieces.append(Piece(run * block_rows, columns, quantise(rows[:, columns], form)))
    return MixedWeight(plan, tuple(pieces))


def _fill(means: np.ndarray, areas: np.ndarray, share: float) -> np.ndarray:
    """Mark the blocks of largest mean until they cover a share of all weights, never more: bool."""
    order = _descending(means)
    marked = np.zeros(len(means), bool)
    marked[order] = np.cumsum(areas[order]) <= share * areas.sum() * (1 + 1e-9)
    return marked


def _descending(values: np.ndarray) -> np.ndarray:
    order: np.ndarray = np.argsort(-values, kind="stable")
    return order


def _areas(shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """Return the weights in each block, those at the ends may be small."""
    sides = [np.diff([*range(0, size, step), size]) for size, step in zip(shape, block, strict=True)]
    return np.outer(*sides)


def _block_sums(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    rows = np.add.reduceat(values.astype(np.float64), np.arange(0, len(values), block[0]), axis=0)
    sums: np.ndarray = np.add.reduceat(rows, np.arange(0, values.shape[1], block[1]), axis=1)
    return sums
