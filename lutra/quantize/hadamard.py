"""Hadamard rotation: spread the outliers of a row or a token over all its places before rounding.

H is orthogonal, so W x = (W H) (H.T x): weights are rotated once, offline, and activations on the way in.  With
R = H diag(signs) / sqrt(n), H of Sylvester's kind, the product takes n log2 n additions and no matrix; random signs
keep a constant row from becoming a spike.  K that is no power of two is rotated in blocks of the largest power of two
that divides it.

Integers gain most: rotated weights are nearly normal, which evenly spaced levels fit; NVINT4 passes NVFP4 after it.

Sources   QuIP#, arXiv 2402.04396, section 3; QuaRot, arXiv 2404.00456, section 3
          INT vs FP, arXiv 2510.25602, section 5
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError


def block_size(k: int, most: int = 1 << 16) -> int:
    """Return the largest power of two that divides k and is at most `most`.

    >>> block_size(172), block_size(4096), block_size(4096, 128)
    (4, 4096, 128)
    """
    return min(k & -k, most)


def random_signs(k: int, seed: int = 0) -> np.ndarray:
    """Return f32 [k] of -1 and +1, the same for the same seed everywhere."""
    bits = np.random.Generator(np.random.PCG64(seed)).integers(0, 2, k)
    return (2 * bits - 1).astype(np.float32)


def rotate(x: np.ndarray, signs: np.ndarray | None = None, block: int | None = None) -> np.ndarray:
    """Return x @ R along the last axis; the same for weights [N, K] and activations [M, K].

    x        float [..., K]
    signs    f32 [K], or None for +1; block  a power of two that divides K; default: the largest
    returns  f32 [..., K]
    raises   FormatError   a block that is no such power, signs of another length

    >>> rotate(np.array([4.0, 0.0, 0.0, 0.0])).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    x, block = _checked(x, signs, block)
    return _transform(x if signs is None else x * signs, block)


def unrotate(x: np.ndarray, signs: np.ndarray | None = None, block: int | None = None) -> np.ndarray:
    """Return x @ R.T: what `rotate` was given, up to rounding."""
    x, block = _checked(x, signs, block)
    turned = _transform(x, block)
    return turned if signs is None else turned * signs


def _checked(x: np.ndarray, signs: np.ndarray | None, block: int | None) -> tuple[np.ndarray, int]:
    k = x.shape[-1]
    block = block_size(k) if block is None else block
    if block < 1 or block & (block - 1) or k % block:
        raise FormatError(
            f"expected a block that is a power of two and divides K={k}, got {block}; use {block_size(k)}"
        )
    if signs is not None and signs.shape != (k,):
        raise FormatError(f"expected {k} signs, got shape {list(signs.shape)}; make them for this width")
    return x.astype(np.float32), block


def _transform(x: np.ndarray, block: int) -> np.ndarray:
    """Walsh and Hadamard's transform of every block, divided by sqrt(block): its own inverse."""
    parts, width = x.reshape(-1, block), 1
    while width < block:
        pairs = parts.reshape(-1, block // (2 * width), 2, width)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        parts = np.stack([low + high, low - high], 2)
        width *= 2
    scaled: np.ndarray = parts.reshape(x.shape) * np.float32(block**-0.5)
    return scaled
