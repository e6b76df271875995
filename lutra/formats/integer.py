"""Integer meaning of a low-bit matrix multiplication, in plain NumPy.

This file is the specification: the compiled kernels (kernels/matmul_mad.py, kernels/matmul_lut.py) and the simulated
hardware are tested equal to it, bit for bit.  Two roads lead to the same integers:

    multiply and add     quantize_activations -> group_dot -> matmul
    look up and add      quantize_activations -> split_planes, build_tables -> lut_dot -> group_dot_lut -> matmul

Shapes    M rows of activations, N output features, K input features (the summed axis), padded as packing.padded_k says
          G groups of weights along K that share one scale, or T of them where weights are sums of T terms
Bounds    |activation| <= 127 and 0 <= code <= 255, so |acc| <= group_size * 255 * 127 < 2**31: QTensor keeps
          groups short enough.  Levels of tables are int8.  int32 is exact everywhere below
Floats    every operation is one f32 operation rounded once.  A group's product and the sum it goes into are one such
          operation, lutra/fused.py; groups are added in ascending order, so all machines agree bit for bit
Sources   BitNet b1.58, arXiv 2402.17764, section 2: absmax int8 activations per token
          T-MAC, arXiv 2407.00088: one table lookup per bit plane
          LUT Tensor Core, arXiv 2408.06003: a bit means +1 or -1, not 1 or 0
"""

from __future__ import annotations

import numpy as np

from lutra import fused
from lutra.errors import FormatError
from lutra.formats import packing
from lutra.formats.qtensor import QTensor

LUT_WIDTH = 4  # neighbouring activations that share one table
INT8_MAX = np.float32(127)
SMALLEST_MAX = np.float32(1e-5)  # keeps a row of zeros from dividing by zero


def quantize_activations(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Round activations to int8 values, with one scale per row or per group.

    x        f32 [M, K]         finite
    group    activations that share a scale; 0 = the whole row
    returns  values int8 [M, Kp]     Kp = padded_k(K, group); -127 .. 127, zeros behind K
             scales f32 [M, Ga]      Ga = Kp / group, or 1

    x is about values * scales.  Halves round to even; in f32: scale = max / 127, value = round(x * (127 / max)).

    >>> values, scales = quantize_activations(np.array([[1, -2, 0.5, 4]], np.float32), 0)
    >>> values[0, :4].tolist(), round(float(scales[0, 0]), 4)                      # 127 / 4 = 31.75 per unit
    ([32, -64, 16, 127], 0.0315)
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise FormatError(f"activations: expected float32 [M, K], got {x.dtype} {list(x.shape)}; convert them")
    m, k = x.shape
    columns = packing.padded_k(k, group)
    x = np.pad(x, ((0, 0), (0, columns - k))).reshape(m, -1, group or columns)     # [M, Ga, group]
    largest = np.maximum(np.abs(x).max(-1), SMALLEST_MAX)                          # [M, Ga]
    values = np.rint(x * (INT8_MAX / largest)[..., None])
    return values.astype(np.int8).reshape(m, columns), largest / INT8_MAX


def activation_sums(xq: np.ndarray, group: int) -> np.ndarray:
    """Add up the activations of each weight group; what zeros and mins are multiplied with.

    xq       int8  [M, K]   K a multiple of group
    group    group_size of the weight; 0 = the whole row
    returns  int32 [M, G]

    >>> activation_sums(np.array([[1, 2, 3, 4]], np.int8), 2).tolist()
    [[3, 7]]
    """
    sums: np.ndarray = xq.reshape(len(xq), -1, group or xq.shape[1]).sum(-1, dtype=np.int32)
    return sums


def group_dot(xq: np.ndarray, w: QTensor) -> np.ndarray:
    """Multiply and add, exactly, for each group g and term t of the weight:

    acc[m, n, g * T + t] = sum over k in g of (level(code[n, t, k]) - zero - zeros[n, g]) * xq[m, k]

    xq       int8  [M, K]       K or the padded K of w
    returns  int32 [M, N, G * T]

    The sum runs in floating point because BLAS is fast there.  It is exact all the same: every product and every
    partial sum, in any order, is an integer below 2**24 (f32) or 2**53 (f64).
    """
    xq = _fit(xq, w)
    group = w.format.group_size or w.padded_k
    biggest = group * 128 * (2**w.format.bits + int(np.abs(w.format.level_values).max()))  # bound of every partial sum
    dtype = np.dtype(np.float32 if biggest < 2**24 else np.float64)
    codes = packing.unpack(w.packed, w.format.bits, w.padded_k * w.format.terms)   # [N, K * T]
    levels = w.format.worth(codes, dtype).reshape(len(codes), -1, group)           # [N, G * T, group]
    if w.zeros is not None:
        levels -= w.zeros.astype(dtype)[..., None]
    x = xq.astype(dtype).reshape(len(xq), -1, group)                               # [M, G, group]
    x = np.repeat(x, w.format.terms, axis=1)                                       # [M, G * T, group]
    acc: np.ndarray = np.matmul(x.transpose(1, 0, 2), levels.transpose(1, 2, 0))   # [G * T, M, N]
    return acc.transpose(1, 2, 0).astype(np.int32)


def matmul(xq: np.ndarray, xs: np.ndarray, w: QTensor) -> np.ndarray:
    """Return y = x @ W.T for quantised activations: the integers of group_dot, scaled and added group by group.

    xq       int8 [M, K]
    xs       f32  [M, 1] or [M, G]     one scale per row, or one per weight group
    returns  f32  [M, N]               rounded as scale_groups says

    >>> from lutra.formats import catalog
    >>> codes = np.array([[2, 0, 1, 2]], np.uint8)                                 # ternary: +1 -1 0 +1
    >>> w = QTensor.from_codes(catalog.ternary(0), codes, np.array([[0.5]], np.float32))
    >>> matmul(np.array([[1, 2, 3, 4]], np.int8), np.array([[2]], np.float32), w).tolist()
    [[3.0]]
    """
    return scale_groups(group_dot(xq, w), activation_sums(_fit(xq, w), w.format.group_size), xs, w)


def scale_groups(acc: np.ndarray, xsum: np.ndarray, xs: np.ndarray, w: QTensor) -> np.ndarray:
    """Turn exact group sums into floats; the second half of matmul, whoever made the integers.

    acc      int32 [M, N, G * T]  from group_dot or group_dot_lut
    xsum     int32 [M, G]         from activation_sums
    xs       f32   [M, 1] or [M, G]
    returns  f32   [M, N]

    For each group in ascending order: its terms in ascending order, then its min.  A stored scale is first widened to
    f32; of two levels the product is rounded (QTensor.scale_values); then scale * xs is; then the sum of all before
    plus f32(acc) * that, once for both.
    """
    terms, num_groups = w.format.terms, xsum.shape[1]
    scales, mins = w.scale_values(), None if w.mins is None else w.min_values()
    if xs.dtype != np.float32 or xs.shape not in ((len(acc), 1), (len(acc), num_groups)):
        raise FormatError(f"activation scales: expected float32 [{len(acc)}, 1] or [{len(acc)}, {num_groups}], "
                          f"got {xs.dtype} {list(xs.shape)}; quantize activations with the weight's group, or 0")
    xs = np.broadcast_to(xs, (len(acc), num_groups))
    out = np.zeros(acc.shape[:2], np.float32)
    for g in range(num_groups):                                                    # ascending: the order is the meaning
        for column in range(g * terms, (g + 1) * terms):
            scale = scales[:, column] * xs[:, g, None]                             # [M, N]
            out = fused.fma(acc[:, :, column].astype(np.float32), scale, out)
        if mins is not None:
            least = mins[:, g] * xs[:, g, None]
            out = fused.fma(xsum[:, g, None].astype(np.float32), least, out)
    return out


def split_planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Gather each bit of 4 neighbouring codes into one table index.

    codes    uint8 [N, K]             0 .. 2**bits - 1
    returns  uint8 [bits, N, K / 4]   bit i of an index belongs to weight 4 * k + i
    raises   FormatError              K is not a multiple of 4

    >>> split_planes(np.array([[1, 0, 1, 1]], np.uint8), 1).tolist()               # 0b1101
    [[[13]]]
    """
    n, k = codes.shape
    if k % LUT_WIDTH:
        raise FormatError(f"K must be a multiple of {LUT_WIDTH}, got K={k}; pad the weight before splitting it")
    bit = codes >> np.arange(bits, dtype=np.uint8)[:, None, None] & 1              # [bits, N, K]
    bit = bit.reshape(bits, n, k // LUT_WIDTH, LUT_WIDTH)
    planes: np.ndarray = (bit << np.arange(LUT_WIDTH, dtype=np.uint8)).sum(-1, dtype=np.uint8)
    return planes


def build_tables(x: np.ndarray) -> np.ndarray:
    """Sum every +/- choice of 4 neighbouring activations.

    x        int8  [M, K]
    returns  int16 [M, K / 4, 16]     entry p adds x[i] where bit i of p is 1, subtracts it where it is 0

    Entry 15 - p is minus entry p, so half a table says everything.  int16 is exact: |entry| <= 4 * 128 = 512.

    >>> int(build_tables(np.array([[1, 2, 3, 4]], np.int8))[0, 0, 0b1101])         # 1 - 2 + 3 + 4
    6
    """
    index = np.arange(2**LUT_WIDTH)[:, None] >> np.arange(LUT_WIDTH) & 1           # [16, 4]
    sign = (2 * index - 1).astype(np.int16)                                        # [16, 4]  +1 or -1
    return x.reshape(len(x), -1, LUT_WIDTH).astype(np.int16) @ sign.T


def lut_dot(tables: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Multiply by looking up: x @ levels.T with levels = 2 * code - (2**bits - 1), which are odd and symmetric.

    tables   int16 [M, K / 4, 16]
    planes   uint8 [bits, N, K / 4]
    returns  int32 [M, N]
    """
    position = np.arange(tables.shape[1])                                          # [K/4]
    acc = np.zeros((len(tables), planes.shape[1]), np.int32)                       # [M, N]
    for b, plane in enumerate(planes):
        acc += tables[:, position, plane].sum(-1, dtype=np.int32) << b             # gather [M, N, K/4]
    return acc


def group_dot_lut(xq: np.ndarray, w: QTensor) -> np.ndarray:
    """Return what group_dot returns, by table lookup; for evenly spaced codes of 1 to 7 bits.

    xq       int8  [M, K]
    returns  int32 [M, N, G * T]
    raises   FormatError   a format that is not stored as planes, or whose levels are a table of their own

    With L = sum of (2 code - (2**bits - 1)) * x from the tables and X = sum of x:
    sum of code * x = (L + (2**bits - 1) * X) / 2, always a whole number.  What is left is to take (zero + zeros) * X.
    """
    if w.format.storage != "planes" or w.format.levels != "uniform":
        got = w.format.storage if w.format.levels == "uniform" else f"levels {w.format.levels}"
        raise FormatError(f"{w.format.name}: expected a format stored as planes, got {got}; use group_dot")
    xq = _fit(xq, w)
    bits, terms, group = w.format.bits, w.format.terms, w.format.group_size or w.padded_k
    planes = split_planes(packing.unpack(w.packed, bits, w.padded_k * terms), bits)  # [bits, N, K * T / 4]
    tables = build_tables(xq)                                                      # [M, K/4, 16]
    step = group // LUT_WIDTH                                                      # tables of one group
    sums = []
    for column in range(planes.shape[2] // step):                                  # g * T + t
        its_tables = column // terms * step
        its_planes = planes[:, :, column * step : (column + 1) * step]
        sums.append(lut_dot(tables[:, its_tables : its_tables + step], its_planes))
    looked_up = np.stack(sums, axis=-1)                                            # [M, N, G * T]
    xsum = np.repeat(activation_sums(xq, group), terms, axis=1)[:, None, :]        # [M, 1, G * T]
    code_sum = (looked_up + (2**bits - 1) * xsum) >> 1
    acc: np.ndarray = code_sum - _offsets(w) * xsum
    return acc


def _offsets(w: QTensor) -> np.ndarray:
    """What is taken from every code of a group, in units of codes: int32 [N, G * T]."""
    zeros = np.zeros(w.scales.shape, np.int32) if w.zeros is None else w.zeros.astype(np.int32)
    return zeros + np.int32(w.format.zero)


def _fit(xq: np.ndarray, w: QTensor) -> np.ndarray:
    """Pad activations with zeros to the columns that w stores."""
    k = w.shape[1]
    if w.format.is_float:
        raise FormatError(f"{w.format.name}: expected whole levels, got floats; use reduce.dense_spec")
    if xq.ndim != 2 or xq.dtype != np.int8 or not k <= xq.shape[1] <= w.padded_k:
        raise FormatError(f"activations: expected int8 [M, {k}] or [M, {w.padded_k}], got {xq.dtype} {list(xq.shape)}; "
                          "quantize the activations of this weight's K")  # fmt: skip
    return np.pad(xq, ((0, 0), (0, w.padded_k - xq.shape[1])))
