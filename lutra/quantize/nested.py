"""One weight that holds several precisions: the high bits of its codes are the codes of its children.

Child of b' bits of a parent of b bits: codes >> (b - b'), and the same levels with the low bits in their middle:

    W = s (q - z) + m  becomes  s 2**d (q' - z / 2**d) + m + s (2**d - 1) / 2        d = b - b', q = q' 2**d + rest

`refit` finds scale and minimum anew by least squares from the parent's own values, group by group.  Either way the
parent is all there is on disk, and the precision is chosen when it is loaded.

Source   Matryoshka quantisation, arXiv 2502.06786; D2MoE, arXiv 2504.15299, section 4: planes, high bits first
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import Fitted, by_groups
from lutra.quantize.store import stored_scales


def child(parent: QTensor, bits: int, refit: bool = True) -> QTensor:
    """Return the weight of the upper bits.

    parent   evenly spaced codes of one term, float scales, any offset
    bits     1 to those of the parent
    refit    scales and minima by least squares, else those of the formula above
    returns  QTensor in planes of `bits` with mins, of the parent's groups and scale type
    raises   FormatError   a parent of another kind, more bits than it has

    >>> codes, one = np.array([[0, 3, 8, 15]], np.uint8), np.ones((1, 1), np.float32)
    >>> parent = QTensor.from_codes(catalog.planes(4, 0), codes, one)
    >>> parent.dequantize().tolist(), child(parent, 2, refit=False).dequantize().tolist()
    ([[-8.0, -5.0, 0.0, 7.0]], [[-6.5, -6.5, 1.5, 5.5]])
    """
    form = parent.format
    if not form.is_plain or form.alphabet != "uniform" or not 1 <= bits <= min(form.bits, 7):
        raise FormatError(f"{form.name}: expected evenly spaced codes with float scales, and 1 to {min(form.bits, 7)} "
                          f"bits of them, got {bits}; choose another parent or width")  # fmt: skip
    small = catalog.planes(bits, form.group_size, offset="mins", scale_dtype=form.scale_dtype,
                           activation_group=form.activation_group)  # fmt: skip
    codes = parent.codes() >> np.uint8(form.bits - bits)
    if refit:
        fitted = by_groups(parent.dequantize(), form.group_size, _least_squares, codes)
        scales, mins = fitted.scales, fitted.mins
        assert mins is not None
    else:
        scales, mins = _middle(parent, form.bits - bits)
    k = parent.shape[1]
    return QTensor.from_codes(
        small, codes, **stored_scales("scales", scales, small, k), **stored_scales("mins", mins, small, k)
    )


def _middle(parent: QTensor, dropped: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and mins, f32 [N, G], that put every child level in the middle of the levels it stands for."""
    scale = parent.scale_values()
    least = scale * -np.float32(parent.format.zero)
    if parent.zeros is not None:
        least = least - scale * parent.zeros.astype(np.float32)
    if parent.mins is not None:
        least = least + parent.min_values()
    return scale * np.float32(2**dropped), least + scale * np.float32((2**dropped - 1) / 2)


def _least_squares(values: np.ndarray, codes: np.ndarray) -> Fitted:
    """Fit values [M, width] = scale * codes + min; groups whose codes are all equal get scale 0."""
    wide = codes.astype(np.float64)
    mean, target = wide.mean(1, keepdims=True), values.mean(1, keepdims=True, dtype=np.float64)
    spread = ((wide - mean) ** 2).sum(1)
    slope = np.divide(((wide - mean) * (values - target)).sum(1), spread, out=np.zeros(len(wide)), where=spread > 0)
    return Fitted(
        codes[:, None], slope[:, None].astype(np.float32), (target[:, 0] - slope * mean[:, 0]).astype(np.float32)
    )
