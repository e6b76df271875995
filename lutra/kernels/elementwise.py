"""Exponential, sigmoid and the gates of feed-forward layers, on f32 vectors.

Each function is traced into the kernel that calls it; the `_spec` beside it is the same arithmetic in NumPy, equal
bit for bit.  Every multiply and add rounds on its own, so the order written here is the meaning.

exp    v is split as n * ln 2 + r with |r| <= ln 2 / 2; a polynomial gives e**r, the exponent field gives 2**n.
       Error at most 2 ulp (tested against float64) for |v| <= 87.3; outside it stays at e**-87.3 and e**87.3, so
       finite input never makes 0, infinity or a subnormal number.  NaN counts as -infinity, in relu2 too.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.language import Value, bitcast, convert, f32, i32, maximum, minimum, round_even

EXP_LIMIT = 87.33654022216797  # largest f32 below 126 * ln 2: 2**n keeps a normal exponent
_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # 9 significant bits, so n * _LN2_HIGH is exact for |n| <= 126
_LN2_LOW = -2.12194440054690583e-4
# e**r = 1 + r + r**2 * (C0 + C1 r + ... + C4 r**4): least maximum relative error on |r| <= ln 2 / 2, which is 3.1e-9
_C0, _C1, _C2 = 0.4999999403953552, 0.1666652113199234, 0.04166838899254799
_C3, _C4 = 0.008368716575205326, 0.001381459878757596


def exp(v: Value) -> Value:
    """e**v, at most 2 ulp off."""
    v = minimum(maximum(v, -EXP_LIMIT), EXP_LIMIT)
    n = round_even(v * _LOG2_E)
    r = (v - n * _LN2_HIGH) - n * _LN2_LOW
    r2 = r * r
    tail = (r * _C1 + _C0) + r2 * ((r * _C3 + _C2) + r2 * _C4)
    power = bitcast((convert(n, i32) + 127) << 23, f32)  # 2**n: the biased exponent above 23 bits of mantissa
    return ((r2 * tail + r) + 1.0) * power


def sigmoid(v: Value) -> Value:
    """1 / (1 + e**-v)."""
    return 1.0 / (exp(0.0 - v) + 1.0)


def silu(v: Value) -> Value:
    """v * sigmoid(v), the gate of Llama and Qwen."""
    return v * sigmoid(v)


def relu2(v: Value) -> Value:
    """max(v, 0)**2, the gate of BitNet b1.58."""
    positive = maximum(v, 0.0)
    return positive * positive


# ---- the same in NumPy: f32 in, f32 out, any shape ----------------------------------------------------------------


def exp_spec(v: np.ndarray) -> np.ndarray:
    """`exp` in NumPy."""
    one = np.float32
    v = np.minimum(np.where(v > -one(EXP_LIMIT), v, -one(EXP_LIMIT)), one(EXP_LIMIT))
    n = np.rint(v * one(_LOG2_E))
    r = (v - n * one(_LN2_HIGH)) - n * one(_LN2_LOW)
    r2 = r * r
    tail = (r * one(_C1) + one(_C0)) + r2 * ((r * one(_C3) + one(_C2)) + r2 * one(_C4))
    power = ((n.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    return ((r2 * tail + r) + one(1)) * power


def sigmoid_spec(v: np.ndarray) -> np.ndarray:
    """`sigmoid` in NumPy."""
    return np.float32(1) / (exp_spec(np.float32(0) - v) + np.float32(1))


def silu_spec(v: np.ndarray) -> np.ndarray:
    """`silu` in NumPy."""
    return v * sigmoid_spec(v)


def relu2_spec(v: np.ndarray) -> np.ndarray:
    """`relu2` in NumPy; overflow beyond 1.8e19 gives infinity, as in the kernel."""
    positive = np.where(v > 0, v, np.float32(0))
    return positive * positive
