"""How far a quantised weight is from the float one, in numbers that can be compared.

None of them ranks methods of different families by the loss of a model: measure that too (docs/quantisers.md).
"""

from __future__ import annotations

import math

import numpy as np

from lutra.errors import FormatError


def sqnr_db(w: np.ndarray, quantised: np.ndarray) -> float:
    """Return signal to quantisation noise, 10 log10(sum w**2 / sum error**2), in dB; inf where nothing differs.

    raises   FormatError   shapes that differ; no weight but zeros, which have no signal

    >>> round(sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 3.5])), 3)        # 25 / 0.25 = 100
    20.0
    """
    signal, noise = _sums(w, quantised)
    if signal == 0:
        raise FormatError("expected weights that are not all zero, got zeros; a signal of 0 has no ratio to noise")
    return 10 * math.log10(signal / noise) if noise else math.inf


def relative_error(w: np.ndarray, quantised: np.ndarray) -> float:
    """Return |error| / |w| in the Frobenius norm; 0 for equal matrices, also of zeros.

    >>> relative_error(np.array([3.0, 4.0]), np.array([3.0, 3.5]))
    0.1
    """
    signal, noise = _sums(w, quantised)
    return math.sqrt(noise / signal) if noise else 0.0


def output_error(w: np.ndarray, quantised: np.ndarray, hessian: np.ndarray) -> float:
    """Return what the error does to outputs: tr(E H E.T), the squared change of y = x @ w.T over the mean input.

    w, quantised   float [N, K]
    hessian        float [K, K]   mean of x.T x over tokens, or [K], its diagonal alone

    >>> output_error(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0]]), np.array([5.0, 3.0]))
    3.0
    """
    error = np.asarray(w, np.float64) - np.asarray(quantised, np.float64)
    weighted = error * hessian if hessian.ndim == 1 else error @ hessian
    return float((weighted * error).sum())


def worst_error(w: np.ndarray, quantised: np.ndarray) -> float:
    """Return the largest |error| of one weight."""
    return float(np.abs(np.asarray(w, np.float64) - np.asarray(quantised, np.float64)).max())


def _sums(w: np.ndarray, quantised: np.ndarray) -> tuple[float, float]:
    """Sum the squares of the weights and of the errors, in f64."""
    if w.shape != quantised.shape:
        raise FormatError(f"expected two matrices of one shape, got {list(w.shape)} and {list(quantised.shape)}; "
                          "compare a weight with its own quantisation")  # fmt: skip
    exact = np.asarray(w, np.float64)
    error = np.asarray(quantised, np.float64) - exact
    return float((exact**2).sum()), float((error**2).sum())
