"""LoRC: what rounding did to a weight, put back by a product of two thin matrices.

E = W - W^ is not small, but a few of its directions matter most: its singular value decomposition cut at rank r gives
U = U_r sqrt(S_r) and V = sqrt(S_r) V_r, and y = W^ x + U (V x).  Weighted with the inputs' mean squares h, the product
lowers the error of outputs instead of weights: decompose E diag(sqrt(h)), then divide V by sqrt(h).

Sources   ZeroQuant-FP, arXiv 2307.09782, section 3; ZeroQuant-V2, arXiv 2303.08302, section 5
          the weights sqrt(h): LQER, arXiv 2402.02446
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.quantize.rounding import as_finite_f32

SMALLEST_SHARE = 1e-6  # of the largest h: inputs that calibration hardly saw still count a little


def low_rank(w: np.ndarray, quantised: QTensor, rank: int, mean_squares: np.ndarray | None = None) -> Adapted:
    """Put a low-rank correction beside a quantised weight.

    w             float [N, K]   what was quantised
    rank          1 to min(N, K); 8 to 64 are usual, and cost 32 r (N + K) / (N K) bits per weight
    mean_squares  float [K], >= 0: mean of x[k]**2 over calibration tokens, or None to weigh all inputs alike
    raises        FormatError    weights that are not finite, shapes that differ, a rank that is not possible

    >>> from lutra.formats import catalog
    >>> ones = QTensor.from_codes(catalog.ternary(), np.full((2, 2), 2, np.uint8), np.ones((2, 1), np.float32))
    >>> low_rank(np.array([[2.0, 3.0], [2.0, 3.0]]), ones, 1).dequantize().round(5).tolist()        # E = [1 2; 1 2]
    [[2.0, 3.0], [2.0, 3.0]]
    """
    w = as_finite_f32(w)
    if w.shape != quantised.shape or not 1 <= rank <= min(w.shape):
        raise FormatError(f"expected the weight that was quantised, {list(quantised.shape)}, and a rank of 1 to "
                          f"{min(w.shape)}, got {list(w.shape)} and {rank}; choose a smaller rank")  # fmt: skip
    u, v = factors(w - quantised.dequantize(), rank, mean_squares)
    return Adapted(quantised, low_rank=(u, v))


def factors(error: np.ndarray, rank: int, mean_squares: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (U f32 [N, r], V f32 [r, K]): the best product of that rank for the error, weighted with the inputs."""
    weights = np.ones(error.shape[1]) if mean_squares is None else mean_squares.astype(np.float64)
    if weights.shape != error.shape[1:] or not (weights >= 0).all():
        raise FormatError(f"expected a mean square >= 0 for each of {error.shape[1]} inputs, got shape "
                          f"{list(weights.shape)}; collect inputs again")  # fmt: skip
    root = np.sqrt(np.maximum(weights, SMALLEST_SHARE * weights.max(initial=0) or 1.0))
    left, sizes, right = np.linalg.svd(error.astype(np.float64) * root, full_matrices=False)
    half = np.sqrt(sizes[:rank])
    return (left[:, :rank] * half).astype(np.float32), (half[:, None] * right[:rank] / root).astype(np.float32)
