"""Cosine and sine that are the same bits on every machine.

NumPy's own come from whichever vector library it was built with and may differ in the last bit from one CPU to the
next; these are float64 additions and multiplications in a fixed order.
"""

from __future__ import annotations

import math

import numpy as np

# pi / 2 in three parts of at most 33 bits, so that k times a part is exact for |k| < 2**20: fdlibm, e_rem_pio2.c
HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
INVERSE_HALF_PI = 2 / math.pi
# Taylor series on |r| <= pi / 4; what is left out is below 2e-17
COSINE = tuple((-1) ** n / math.factorial(2 * n) for n in range(10))
SINE = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(10))


def cos_sin(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of angles in radians, within 3e-16.

    angles   float64, 0 <= angle < 1.6e6 (2**20 quarter turns)
    returns  float64, float64 of the same shape

    >>> cos_sin(np.array([0.0, 1.0]))[0].tolist()
    [1.0, 0.5403023058681398]
    """
    quarter = np.rint(angles * INVERSE_HALF_PI)
    r = ((angles - quarter * HALF_PI[0]) - quarter * HALF_PI[1]) - quarter * HALF_PI[2]
    square = r * r
    cosine, sine = _polynomial(COSINE, square), r * _polynomial(SINE, square)
    turn = quarter.astype(np.int64) & 3
    swapped = (turn & 1).astype(bool)
    cos, sin = np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)
    return np.where((turn == 1) | (turn == 2), -cos, cos), np.where(turn >= 2, -sin, sin)


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    """Horner's rule, a multiplication and an addition a step."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value *= x
        value += coefficient
    return value
