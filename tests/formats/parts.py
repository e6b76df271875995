"""Random arrays for every format: codes, and whatever the format has beside them."""

from __future__ import annotations

import numpy as np

from lutra.formats import scales
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.vectors import CENTROIDS, MAX_MAGNITUDE, VectorFormat, VectorWeight


def random_codes(form: Format, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Codes of the whole alphabet, [N, K] or [N, T, K]."""
    shape = (n, k) if form.terms == 1 else (n, form.terms, k)
    return rng.integers(0, form.num_codes, shape, dtype=np.uint8)


def random_beside(form: Format, n: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Scales of both signs where the type has one, and what else the format has."""
    return {
        name: _zeros(form, (n, columns), rng) if name == "zeros" else random_scales(dtype, (n, columns), rng)
        for name, (dtype, columns) in form.beside(k).items()
    }


def _zeros(form: Format, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, min(2**form.bits, 255), shape, dtype=np.uint8, endpoint=True)


def random_scales(dtype: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Any value of the integer types; powers of two from 2**-27 to 2**13; normal floats."""
    if dtype == "e8m0":
        return rng.integers(100, 140, shape, dtype=np.uint8)
    if dtype == "e4m3":
        return rng.integers(0, 127, shape, dtype=np.uint8) | rng.integers(0, 2, shape, dtype=np.uint8) << 7
    if dtype in ("u8", "i8"):
        bounds = np.iinfo(scales.DTYPES[dtype])
        return rng.integers(bounds.min, bounds.max, shape, dtype=bounds.dtype, endpoint=True)
    return rng.standard_normal(shape).astype(scales.DTYPES[dtype])


def random_vectors(form: VectorFormat, n: int, k: int, seed: int = 0) -> VectorWeight:
    """Random indices and levels, entry 255 the largest there may be and often named; scales of both signs."""
    rng = np.random.default_rng(seed)
    most = min(127 // form.terms, MAX_MAGNITUDE // form.length)
    books = rng.integers(-most, most, (form.terms, CENTROIDS, form.length), dtype=np.int8, endpoint=True)
    books[:, 255] = most
    shape = (n, form.terms, form.num_vectors(k))
    indices = np.where(rng.random(shape) < 0.2, np.uint8(255), rng.integers(0, CENTROIDS, shape, dtype=np.uint8))
    return VectorWeight(form, (n, k), indices, books, rng.standard_normal((n, 1)).astype(np.float32))


def one_scale(form: Format, stored: np.generic) -> np.float32:
    """The value of one stored scale, from the definition of its type."""
    bits = int(stored) if form.scale_dtype in ("e8m0", "e4m3") else 0
    if form.scale_dtype == "e8m0":
        return np.float32(2.0 ** (bits - 127))
    if form.scale_dtype == "e4m3":
        exponent, mantissa = bits >> 3 & 15, bits & 7
        magnitude = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
        return np.float32(-magnitude if bits >> 7 else magnitude)
    return np.float32(stored)


def scale_at(w: QTensor, n: int, g: int, term: int) -> np.float32:
    """The scale of one term in one group, an f32 scalar."""
    return _times_upper(w, w.scales[n, g * w.format.terms + term], w.super_scales, n, g)


def min_at(w: QTensor, n: int, g: int) -> np.float32:
    """The min of one group, an f32 scalar."""
    return _times_upper(w, w.mins[n, g], w.super_mins, n, g)


def _times_upper(w: QTensor, stored: np.generic, upper: np.ndarray | None, n: int, g: int) -> np.float32:
    value = one_scale(w.format, stored)
    if upper is None:
        return value
    column = g * w.format.group_size // w.format.super_group if w.format.super_group else 0
    return np.float32(value * np.float32(upper[n, column]))
