"""a * b + c rounded once, out of additions and multiplications: what a fused multiply-add means, in NumPy.

The product of two f32 is exact in f64.  The sum there is rounded to odd: where it is not exact, the neighbour is taken
whose last bit is 1.  f64 has more than two bits beyond f32's, so rounding that to f32 is as good as rounding once.

Source    Boldo and Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd,
          IEEE Transactions on Computers 57 (2008)
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # numpy scalar or array


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in f32, rounded once; arguments f32 that broadcast.

    >>> float(fma(np.float32(1 + 2**-12), np.float32(1 - 2**-12), np.float32(-1))) == -(2**-24)
    True
    """
    product, addend = np.float64(a) * np.float64(b), np.float64(c)
    with np.errstate(all="ignore"):  # of infinities and NaN the error is no number, and nothing is corrected
        total = product + addend
        second = total - product
        error = (product - (total - second)) + (addend - second)
        bits = np.asarray(total).view(np.int64)
        step = np.where((error > 0) == (total > 0), 1, -1)
        odd = np.where(((error > 0) | (error < 0)) & (bits & 1 == 0), bits + step, bits)
        result: Array = odd.view(np.float64).astype(np.float32)[()]
    return result
