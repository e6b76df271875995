"""The quantisers that need nothing but the weight, by name: which formats each can write, and which a format gets.

All have one signature, (w float [N, K], format) -> QTensor, so GPTQ and AWQ take any of them to find scales with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.vectors import VectorFormat
from lutra.quantize import bcq, codec, hlq, ptqtp, vptq
from lutra.quantize.clip import clip
from lutra.quantize.groups import Fitted, by_groups
from lutra.quantize.rounding import as_finite_f32, round_to_nearest
from lutra.quantize.store import store
from lutra.quantize.ternary import absmean

Quantise = Callable[[np.ndarray, Format], QTensor]


def rtn(w: np.ndarray, format: Format) -> QTensor:
    """Round to nearest in any format of one term, whatever its levels and scales.

    raises   FormatError   a format with zeros whose scales are not f16 or f32, weights that are not finite
    """
    if _is_plain_grid(format):
        return round_to_nearest(w, format)
    if format.offset == "none":
        return codec.quantize(w, format)
    if format.offset != "mins" or format.levels != "uniform":
        raise FormatError(f"{format.name}: expected levels at equal distances and mins, or no offset, got levels "
                          f"{format.levels} and {format.offset}; choose such a format")  # fmt: skip
    w = as_finite_f32(w)
    return store(by_groups(w, format.group_size, lambda rows: _between_ends(rows, format)), format, w)


def _is_plain_grid(format: Format) -> bool:
    """Whether rounding.py writes it: its levels lie around 0, or an offset moves them."""
    is_centred = format.offset != "none" or format.zero == 2 ** (format.bits - 1)
    return format.is_plain and format.alphabet == "uniform" and is_centred


def _between_ends(rows: np.ndarray, format: Format) -> Fitted:
    """Levels at equal distances from the smallest to the largest weight of each group."""
    worth = format.level_values[: format.num_codes]
    scales = (rows.max(1) - rows.min(1)) / np.float32(format.num_codes - 1)
    mins = rows.min(1) - scales * np.float32(worth[0])
    return Fitted(np.zeros((len(rows), 1, rows.shape[1]), np.uint8), scales[:, None], mins)


def _clip(w: np.ndarray, format: Format) -> QTensor:
    return clip(w, format, round_to_nearest if _is_plain_grid(format) else rtn)


def _absmean(w: np.ndarray, format: Format) -> QTensor:
    """BitNet's rule, whose one scale every group gets."""
    q = absmean(w)
    scales = np.repeat(q.scales[:, :1], format.num_groups(w.shape[1]), 1).astype(format.dtype)
    return QTensor.from_codes(format, q.codes(), scales)


@dataclass(frozen=True)
class Method:
    """A row of METHODS.

    quantise   (w, format) -> QTensor
    fits       which formats it can write
    source     where it is defined
    """

    quantise: Quantise
    fits: Callable[[Format], bool]
    source: str


def _has_grid(format: Format) -> bool:
    """One term, several levels, and an offset that rounding knows what to do with."""
    if format.terms > 1 or format.levels == "sign":
        return False
    return format.offset == "none" or (format.levels == "uniform" and (format.is_plain or format.offset == "mins"))


def _is_trit(format: Format) -> bool:
    return format.alphabet == "trit"


# in this order of preference, where nobody asks for one
METHODS: dict[str, Method] = {
    "hlq": Method(hlq.hlq, lambda f: hlq.fits(f) and f.terms > 1, "ELUTQ, arXiv 2510.19482"),
    "ptqtp": Method(ptqtp.trit_planes, lambda f: _is_trit(f) and f.terms <= 2, "PTQTP, arXiv 2509.16989"),
    "bcq": Method(bcq.bcq, lambda f: f.levels == "sign" and f.offset == "none", "LUT-GEMM, arXiv 2206.09557"),
    "clip": Method(_clip, lambda f: _has_grid(f) and not (_is_trit(f) or f.is_float), "GPTQ's quantiser, option mse"),
    "rtn": Method(rtn, _has_grid, "round to nearest"),
    "absmean": Method(_absmean, lambda f: _is_trit(f) and f.terms == 1 and f.offset == "none" and f.is_plain,
                      "BitNet b1.58, arXiv 2402.17764"),
    "vptq": Method(vptq.vptq, lambda f: isinstance(f, VectorFormat), "VPTQ, arXiv 2409.17066"),
}  # fmt: skip


def method_for(format: Format | VectorFormat, wanted: str | None = None) -> str:
    """Return the name of a method that writes a format: `wanted` where it can, else the first of METHODS.

    raises   FormatError   no method writes this format

    >>> from lutra.formats import catalog
    >>> four = catalog.planes(4, 32)
    >>> method_for(four), method_for(four, "rtn"), method_for(catalog.ternary(), "clip")
    ('clip', 'rtn', 'ptqtp')
    """
    if isinstance(format, VectorFormat):  # which the others know nothing of
        return "vptq"
    if wanted is not None and METHODS[wanted].fits(format):
        return wanted
    found = next((name for name, method in METHODS.items() if method.fits(format)), None)
    if found is None:
        raise FormatError(f"{format.name}: expected a format that one of {', '.join(METHODS)} writes, got another; "
                          "choose one with fewer terms, or without zeros")  # fmt: skip
    return found
