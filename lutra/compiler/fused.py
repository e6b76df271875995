"""a * b + c rounded once, with nothing but additions and multiplications: for NumPy, and for CPUs without the instruction.

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


# The same in LLVM's text, of LANES lanes
TEXT = """define internal FLOAT @lutra_fma.LANES(FLOAT %a, FLOAT %b, FLOAT %c) noinline nounwind {
  %x = fpext FLOAT %a to DOUBLE
  %y = fpext FLOAT %b to DOUBLE
  %addend = fpext FLOAT %c to DOUBLE
  %product = fmul DOUBLE %x, %y
  %total = fadd DOUBLE %product, %addend
  %second = fsub DOUBLE %total, %product
  %first = fsub DOUBLE %total, %second
  %lost = fsub DOUBLE %product, %first
  %lost.too = fsub DOUBLE %addend, %second
  %error = fadd DOUBLE %lost, %lost.too
  %above = fcmp ogt DOUBLE %error, zeroinitializer
  %below = fcmp olt DOUBLE %error, zeroinitializer
  %positive = fcmp ogt DOUBLE %total, zeroinitializer
  %bits = bitcast DOUBLE %total to INT
  %last = trunc INT %bits to BOOL
  %even = xor BOOL %last, splat (i1 true)
  %inexact = or BOOL %above, %below
  %wrong = and BOOL %inexact, %even
  %inwards = xor BOOL %above, %positive
  %step = select BOOL %inwards, INT splat (i64 -1), INT splat (i64 1)
  %correction = select BOOL %wrong, INT %step, INT zeroinitializer
  %odd = add INT %bits, %correction
  %wide = bitcast INT %odd to DOUBLE
  %result = fptrunc DOUBLE %wide to FLOAT
  ret FLOAT %result
}"""


def text(lanes: int) -> str:
    """LLVM's text of lutra_fma.LANES for vectors of so many lanes, at least 2."""
    kinds = {"FLOAT": "float", "DOUBLE": "double", "INT": "i64", "BOOL": "i1"}
    body = TEXT
    for word, kind in kinds.items():
        body = body.replace(word, f"<{lanes} x {kind}>")
    return body.replace("LANES", str(lanes))
