"""HQQ checkpoints: codes of a matrix whose rows are groups, packed along its first dimension, with a float zero each.

W_q     u8 [rows / (8 / bits), g] (3 bits: int32, ten to a word)   slices of the rows, the first in the highest bits
scale   float [rows, 1] or [1, columns], zero likewise

    W = (code - zero) * scale, reshaped to `shape`      axis 1: a group is a run of a row; axis 0: of a column
Source: mobiusml/hqq, hqq/core/bitpack.py and hqq/core/quantize.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.files.methods.layout import DAMAGED, Layout, Parts, matrix, option
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor

SHIFTS = {4: (4, 0), 3: tuple(range(27, -1, -3)), 2: (6, 4, 2, 0), 1: tuple(range(7, -1, -1))}
BESIDE = ("bias", "nbits", "group_size", "axis", "packing", "unpack_view_dtype", "view_as_float", "optimize",
          "round_zero", "channel_wise", "encoded_state_dict", "compute_dtype", "quant_scale", "quant_zero",
          "stores_quant_config", "offload_meta")  # fmt: skip


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layout of a quantization_config of quant_method hqq.  Raises FileError for groups along columns."""
    inner = config.get("quant_config", config)
    weights = inner.get("weight_quant_params", inner) if isinstance(inner, dict) else {}
    weights = weights if isinstance(weights, dict) else {}
    bits = option(weights, "nbits", tuple(sorted(SHIFTS)), weights.get("bits"))
    option(weights, "axis", (1,), 1)
    return (Layout(f"hqq-{bits}", ("W_q", "scale", "zero", "shape"), BESIDE, _shape, partial(_read, bits),
                   "re-coded to our packed order, zeros multiplied out (f32)"),)  # fmt: skip


def _shape(parts: Parts) -> tuple[int, int]:
    matrix(parts, "W_q", np.uint8, np.int32)
    stated = parts["shape"].reshape(-1)
    if stated.size != 2 or stated.dtype.kind != "i" or (stated < 1).any():
        raise FormatError(f"shape: expected N and K, got {stated.size} numbers; {DAMAGED}")
    return int(stated[0]), int(stated[1])


def _read(bits: int, parts: Parts) -> QTensor:
    n, k = _shape(parts)
    packed, scale, zero = parts["W_q"], parts["scale"].astype(np.float32), parts["zero"].astype(np.float32)
    if k % packed.shape[1]:
        raise FormatError(f"W_q: expected groups that divide K={k}, got shape {packed.shape}; {DAMAGED}")
    rows = n * k // packed.shape[1]
    mask = (1 << bits) - 1
    slices = [(packed >> shift & mask).astype(np.uint8) for shift in SHIFTS[bits]]
    codes = np.concatenate(slices)
    if not rows <= len(codes) < rows + len(slices) or scale.size != rows or zero.size != rows:
        raise FormatError(f"expected {rows} groups with a scale and a zero each, got {len(codes)}, {scale.size}, "
                          f"{zero.size}; {DAMAGED}")
    form = catalog.planes(bits, packed.shape[1] if packed.shape[1] < k else 0, offset="mins", scale_dtype="f32")
    scales, zeros = scale.reshape(n, -1), zero.reshape(n, -1)
    return QTensor.from_codes(form, codes[:rows].reshape(n, k), scales, mins=-zeros * scales)
