"""GPTQ: round one input feature after another, and let the features still to come make up for the error.

What is made small is not the error of the weights but of the outputs, tr(E H E.T) with H = mean of x.T x over
calibration tokens.  With U the upper factor of inv(H) = U.T U, column j is rounded to the nearest level of its group,
and its error e = (w[:, j] - level) / U[j, j] is taken from the columns behind it: w[:, j + 1:] -= e * U[j, j + 1:].

A group's scales are found, by any method, when the columns in front of it are done, on weights that have moved by
then; or, with static groups, before the first column.  act_order takes the columns with the largest mean square of the
input first; groups are static then, so that a group stays a run of neighbours in memory and nothing is permuted.

Updates wait: the columns behind are changed by a matrix product over a run of finished ones.  Runs are halves of runs,
down to 32 columns; where a group begins, all that changes it is done.  The result is that of column by column.

Source   arXiv 2210.17323, sections 3.2 and 3.3 and its code (static groups, act-order)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.levels import Search, digits, levels_of, parts_of
from lutra.quantize.rounding import as_finite_f32, round_to_nearest

DAMP = 0.01  # of the mean of the diagonal of H
MAX_DAMP = 10.0
LEAF = 32  # columns that are done one by one
INVERSE_LEAF = 64

Quantise = Callable[[np.ndarray, Format], QTensor]


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs to know of the inputs of a linear, the same for all linears that share them.

    upper    f32 [K, K]    U of inv(H) = U.T U, columns in `order`
    order    int [K]       in which columns are taken
    is_dead  bool [K]      inputs that calibration never saw
    """

    upper: np.ndarray
    order: np.ndarray
    is_dead: np.ndarray

    @classmethod
    def of(cls, hessian: np.ndarray, damp: float = DAMP, act_order: bool = False) -> Factor:
        """Factor the inverse of a hessian; gptq says what the arguments mean.

        hessian   f32 or f64 [K, K], not changed
        raises    FormatError   not square, not finite, not to be factored
        """
        if hessian.ndim != 2 or len(hessian) != hessian.shape[1] or not np.isfinite(hessian).all():
            raise FormatError(f"expected a finite hessian [K, K], got {list(hessian.shape)}; collect inputs again")
        diagonal = np.diagonal(hessian)
        is_dead = diagonal <= 0
        order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(diagonal))
        hessian = hessian[np.ix_(order, order)] if act_order else hessian.copy()
        dead = np.flatnonzero(is_dead[order])
        hessian[dead, dead] = 1
        return cls(inverse_factor(hessian, damp).astype(np.float32, copy=False), order, is_dead)


def gptq(
    w: np.ndarray,
    hessian: np.ndarray | Factor,
    format: Format,
    base: Quantise = round_to_nearest,
    *,
    damp: float = DAMP,
    static_groups: bool = False,
    act_order: bool = False,
) -> QTensor:
    """Quantise a float matrix for the inputs it will meet.

    w              float [N, K]     finite
    hessian        float [K, K]     x.T x over calibration tokens, times any factor; or what was made of it before, and
                                    then damp and the order of columns are that one's
    base           finds the scales of groups: what would quantise the matrix without calibration
    damp           added to the diagonal of H, as a share of its mean; ten times as much until it has a factor
    static_groups  find all scales before the first column
    act_order      largest inputs first; means static_groups too
    raises         FormatError      as base does; a hessian of another shape, or not finite

    Inputs that calibration never saw (0 on the diagonal) have no say: their weights are taken for 0.

    >>> from lutra.formats import catalog
    >>> w, h = np.array([[0.3, 0.3, 15]], np.float32), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)
    >>> gptq(w, h, catalog.planes(4, 0, offset="zeros")).dequantize().tolist()     # steps of 1; 0.3 + 0.3 is nearly 1
    [[0.0, 1.0, 15.0]]
    """
    w = as_finite_f32(w)
    n, k = w.shape
    factor = hessian if isinstance(hessian, Factor) else Factor.of(hessian, damp, act_order)
    if len(factor.order) != k:
        got = len(factor.order)
        raise FormatError(f"expected a hessian [{k}, {k}], got one of {got}; it belongs to another weight")
    order = factor.order
    is_static = static_groups or bool((np.diff(order) < 0).any())
    seen = np.where(factor.is_dead, np.float32(0), w)
    levels = StaticLevels(seen, format, base) if is_static else MovingLevels(k, format, base)
    sweep = Sweep(np.ascontiguousarray(seen.T[order]), factor.upper, levels, order)  # [K, N]: a column is a run
    del seen
    sweep.run(0, k)
    codes = np.empty((k, n), np.uint16)
    codes[order] = sweep.index
    return QTensor.from_codes(format, digits(codes.T, format), **levels.parts())


def inverse_factor(hessian: np.ndarray, damp: float = DAMP) -> np.ndarray:
    """Return the upper triangle U with inv(H + damping) = U.T U.

    hessian   float [K, K]    symmetric, in f32 or f64; its type is kept, and its diagonal is changed
    raises    FormatError     no damping up to 10 times the mean of the diagonal makes it positive

    With J the reversal of rows and columns, J H J = L L.T gives U = J inv(L) J.

    >>> inverse_factor(np.array([[4.0, 0], [0, 16.0]]), 0).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    diagonal = np.arange(len(hessian))
    plain = hessian[diagonal, diagonal].copy()
    mean = plain.mean()
    while damp <= MAX_DAMP:
        hessian[diagonal, diagonal] = plain + plain.dtype.type(damp * mean)
        lower = np.ascontiguousarray(hessian[::-1, ::-1])
        try:
            invert_root(lower)
        except np.linalg.LinAlgError:
            damp = max(10 * damp, DAMP)
            continue
        return lower[::-1, ::-1]
    raise FormatError(f"expected inputs whose x.T x can be factored, got none up to {MAX_DAMP:g} times its mean added; "
                      "collect inputs again, on more text")  # fmt: skip


def invert_root(a: np.ndarray) -> None:
    """Put inv(L) in the place of a symmetric a = L L.T, by halves, so that nearly all work is matrix products.

    With a = [[A, .], [B, C]], inv(L) = [[P, 0], [-Q R P, Q]]:  P of A,  R = B P.T,  Q of C - R R.T.
    raises   LinAlgError   a is not positive
    """
    n = len(a)
    if n <= INVERSE_LEAF:
        a[:] = np.tril(np.linalg.inv(np.linalg.cholesky(a)))
        return
    half = n // 2
    first, second = a[:half, :half], a[half:, half:]
    invert_root(first)
    root = a[half:, :half] @ first.T
    second -= root @ root.T
    invert_root(second)
    a[half:, :half] = -(second @ (root @ first))
    a[:half, half:] = 0


class Sweep:
    """Goes over columns once.

    columns   f32 [K, N]      weights, changed on the way
    factor    f32 [K, K]      upper
    levels    gives the levels of a column's group
    order     int [K]         where in the matrix each column lies
    index     uint16 [K, N]   levels chosen
    """

    def __init__(
        self, columns: np.ndarray, factor: np.ndarray, levels: StaticLevels | MovingLevels, order: np.ndarray
    ) -> None:
        self.columns, self.factor, self.levels, self.order = columns, factor, levels, order
        self.index = np.empty(columns.shape, np.uint16)
        self.errors = np.empty_like(columns)

    def run(self, start: int, end: int) -> None:
        """Do columns start .. end - 1; those behind `end` are left as they are."""
        if end - start <= LEAF:
            for j in range(start, end):
                self._column(j, end)
            return
        middle = start + (1 << (end - start - 1).bit_length() - 1)  # groups begin at multiples of powers of two
        self.run(start, middle)
        self.columns[middle:end] -= self.factor[start:middle, middle:end].T @ self.errors[start:middle]
        self.run(middle, end)

    def _column(self, j: int, end: int) -> None:
        search = self.levels.at(int(self.order[j]), self.columns, j)
        self.index[j], values = search.nearest(self.columns[j])
        error = self.errors[j]
        np.subtract(self.columns[j], values, out=error)
        error /= self.factor[j, j]
        self.columns[j + 1 : end] -= self.factor[j, j + 1 : end, None] * error


class StaticLevels:
    """Levels found before the first column."""

    def __init__(self, w: np.ndarray, format: Format, base: Quantise) -> None:
        self.found = base(w, format)
        self.width = format.group_size or w.shape[1]
        levels = levels_of(self.found)
        self.searches = [Search.of(levels[:, group]) for group in range(levels.shape[1])]

    def at(self, k: int, columns: np.ndarray, j: int) -> Search:
        return self.searches[k // self.width]

    def parts(self) -> dict[str, np.ndarray]:
        return parts_of(self.found)


class MovingLevels:
    """Levels found where a group begins, on the weights as they are then."""

    def __init__(self, k: int, format: Format, base: Quantise) -> None:
        self.k, self.format, self.base = k, format, base
        self.width = format.group_size or k
        self.run = run_width(k, format)
        self.found: list[QTensor] = []
        self.searches: list[Search] = []

    def at(self, k: int, columns: np.ndarray, j: int) -> Search:
        if j % self.run == 0:
            self.found.append(self.base(np.ascontiguousarray(columns[j : j + self.run].T), self.format))
            levels = levels_of(self.found[-1])
            self.searches = [Search.of(levels[:, group]) for group in range(levels.shape[1])]
        return self.searches[j % self.run // self.width]

    def parts(self) -> dict[str, np.ndarray]:
        """Put the arrays of all runs side by side, without what stands for padding."""
        names = parts_of(self.found[0])
        return {name: np.concatenate([_unpadded(found, name) for found in self.found], 1) for name in names}


def run_width(k: int, format: Format) -> int:
    """Columns whose scales have to be found together: a group, or all that share a scale of scales."""
    if format.scale_kind == "two-level":
        return format.super_group or k
    return format.group_size or k


def _unpadded(found: QTensor, name: str) -> np.ndarray:
    values: np.ndarray = getattr(found, name)
    form, k = found.format, found.shape[1]
    if name.startswith("super_"):
        return values
    groups = -(-k // form.group_size) if form.group_size else 1
    return values[:, : groups * (values.shape[1] // form.num_groups(k))]
