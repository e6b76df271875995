"""Bytes of GGUF blocks spread into codes, and what a block decoder returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ONE_BIT_SHIFTS = np.arange(8, dtype=np.uint8)[:, None]  # [8, 1]
TWO_BIT_SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]  # [4, 1]


class Parts(NamedTuple):
    """Rows decoded, as QTensor.from_codes takes them: codes uint8 [N, K], scales [N, G], what the format has beside."""

    codes: np.ndarray
    scales: np.ndarray
    mins: np.ndarray | None = None
    super_scales: np.ndarray | None = None
    super_mins: np.ndarray | None = None


def f16(field: np.ndarray) -> np.ndarray:
    """View bytes [..., 2] as f16 [...]."""
    return np.ascontiguousarray(field).view("<f2")[..., 0]


def words(field: np.ndarray, dtype: str) -> np.ndarray:
    """View bytes [..., B] as little-endian numbers of a NumPy dtype such as "<u2"."""
    return np.ascontiguousarray(field).view(dtype)


def nibbles(field: np.ndarray) -> np.ndarray:
    """Spread bytes [..., B] to codes [..., 2 B]: all low nibbles, then all high ones."""
    return np.concatenate([field & 15, field >> 4], axis=-1)


def neighbours(field: np.ndarray) -> np.ndarray:
    """Spread bytes [..., B] to codes [..., 2 B]: the low and the high nibble of each byte in turn."""
    return np.stack([field & 15, field >> 4], axis=-1).reshape(*field.shape[:-1], -1)


def quarters(field: np.ndarray) -> np.ndarray:
    """Spread bytes [..., B] to 2-bit codes [..., 4, B]: the lowest field of all bytes, then the next."""
    return field[..., None, :] >> TWO_BIT_SHIFTS & 3


def flags(field: np.ndarray) -> np.ndarray:
    """Spread bytes [..., B] to bits [..., 8, B]: the lowest bit of all bytes, then the next."""
    return field[..., None, :] >> ONE_BIT_SHIFTS & 1


def rows(values: np.ndarray) -> np.ndarray:
    """Flatten everything behind N: [N, ...] to [N, K] or [N, G]."""
    return values.reshape(len(values), -1)
