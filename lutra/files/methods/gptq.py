"""GPTQ checkpoints: AutoGPTQ, GPTQModel, AutoRound and EfficientQAT write them.

qweight   int32 [K * bits / 32, N]    codes packed along K, low bits first
qzeros    int32 [G, N * bits / 32]    zeros packed along N
scales    f16   [G, N]
g_idx     int32 [K]                   group of each input; not ascending where act-order was used without static groups

    W[n, k] = scales[g_idx[k], n] * (code[k, n] - zero[g_idx[k], n])

Version 1 stores zero - 1 in its field of bits, so a zero of 0 has wrapped around; version 2 stores the zero.
EfficientQAT stores the zero too and packs ten codes of 3 bits to a word.
Sources: AutoGPTQ, nn_modules/qlinear; GPTQModel, checkpoint_format; AutoRound, packing_format; EfficientQAT,
int_linear_real.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.files.methods.bitstream import WORD, unpack, unpack_whole
from lutra.files.methods.floats import scale_name
from lutra.files.methods.layout import DAMAGED, SCALES, Layout, Parts, matrix, option, refuse
from lutra.formats import catalog
from lutra.formats.format import AXES
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Options:
    """What the tensors do not say themselves.

    bits          width of a code
    zero_offset   what to add to a stored zero: 1 for version 1
    is_symmetric  version 1: the zero of a symmetric weight is never 0, so nothing has wrapped around
    dense         codes may lie across words, as all writers but EfficientQAT pack 3 bits
    """

    bits: int
    zero_offset: int
    is_symmetric: bool
    dense: bool = True

    def unpack(self, words: np.ndarray, count: int) -> np.ndarray:
        return (unpack if self.dense else unpack_whole)(words, self.bits, count)


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layout of a quantization_config of quant_method gptq, auto-round or efficientqat.

    raises   FileError   a packing that is not this one: marlin, exl3, gptq_p, ...
    """
    bits = option(config, "bits", BITS)
    option(config, "pack_dtype", ("int32",), "int32")
    symmetric = bool(config.get("sym", True))
    known = {"gptq": 1, "gptq_v2": 0}
    if config.get("quant_method") == "efficientqat":
        options = Options(bits, 0, symmetric, dense=False)
    elif config.get("quant_method") == "auto-round":
        packing = option(config, "packing_format", ("auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round"),
                         "auto_round")  # fmt: skip
        options = Options(bits, 1 if packing == "auto_round:auto_gptq" else 0, symmetric)
    else:
        version = config.get("checkpoint_format", config.get("format", "gptq"))
        if not isinstance(version, str) or version not in known:
            raise refuse("checkpoint_format", "gptq or gptq_v2", version, "other layouts are made for one GPU kernel")
        options = Options(bits, known[version], symmetric)
    return (Layout(f"gptq-{bits}", ("qweight", "qzeros", "scales"), ("g_idx", "bias"), partial(_shape, options),
                   partial(_read, options), "re-coded to our packed order (lossless)"),)  # fmt: skip


def _shape(options: Options, parts: Parts) -> tuple[int, int]:
    """(N, K); every size must agree."""
    qweight, qzeros = matrix(parts, "qweight", np.int32), matrix(parts, "qzeros", np.int32)
    scales = matrix(parts, "scales", *SCALES)
    per_row = WORD * qweight[0] // options.bits if options.dense else WORD // options.bits * qweight[0]
    k = parts["g_idx"].size if "g_idx" in parts else per_row
    n = qweight[1]
    zero_words = -(-n * options.bits // WORD) if options.dense else -(-n // (WORD // options.bits))
    if not per_row - WORD < k <= per_row or scales[1] != n or qzeros != (scales[0], zero_words):
        raise FormatError(f"expected {options.bits} bits and qzeros {(scales[0], zero_words)}, scales "
                          f"{(scales[0], n)}, got qweight {qweight}, qzeros {qzeros}, scales {scales}; {DAMAGED}")
    return n, k


def _read(options: Options, parts: Parts) -> QTensor | Adapted:
    n, k = _shape(options, parts)
    codes = options.unpack(parts["qweight"].T, k)  # [N, K]
    zeros = options.unpack(parts["qzeros"], n).T + np.uint8(options.zero_offset)  # [N, G]
    if options.zero_offset and not options.is_symmetric:
        zeros &= np.uint8(2**options.bits - 1)
    scales = np.ascontiguousarray(parts["scales"].T)
    groups = parts["g_idx"] if "g_idx" in parts else None
    return grouped(codes, scales, zeros, options.bits, groups)


def grouped(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int,
            groups: np.ndarray | None = None) -> QTensor | Adapted:  # fmt: skip
    """Make a weight of codes with a scale and a zero per group.

    codes    uint8 [N, K]      scales  float [N, G]      zeros  uint8 [N, G]
    groups   int [K]           group of each column; None for G groups of equal length
    returns  QTensor; Adapted with the columns in order of their groups where `groups` does not ascend
    raises   FormatError       a group size that is not one of AXES["group_size"] nor made of whole ones
    """
    k = codes.shape[1]
    perm = None
    if groups is not None:
        if groups.dtype.kind != "i" or groups.shape != (k,):
            raise FormatError(f"g_idx: expected {k} whole numbers, got {groups.dtype} {groups.shape}; {DAMAGED}")
        if groups.min() < 0 or groups.max() != scales.shape[1] - 1:
            raise FormatError(f"g_idx: expected groups 0 to {scales.shape[1] - 1}, got others; {DAMAGED}")
        if (np.diff(groups) < 0).any():
            perm = np.argsort(groups, kind="stable").astype(np.int32)
            codes, groups = codes[:, perm], groups[perm]
    size = _group_size(k, scales.shape[1], groups)
    stored = _stored_size(size, k)
    if stored not in (0, size):  # a longer group is several shorter ones with the same scale
        repeat = size // stored
        scales, zeros = (np.repeat(part, repeat, axis=1)[:, : -(-k // stored)] for part in (scales, zeros))
    if bits == 8 and (zeros == 128).all():  # the usual zero of int8
        weight = QTensor.from_codes(catalog.int8(stored, scale_dtype=scale_name(scales)), codes, scales)
    else:
        make = catalog.int8 if bits == 8 else partial(catalog.planes, bits)
        weight = QTensor.from_codes(make(stored, offset="zeros", scale_dtype=scale_name(scales)), codes, scales, zeros)
    return weight if perm is None else Adapted(weight, perm=perm)


def _group_size(k: int, num_groups: int, groups: np.ndarray | None) -> int:
    """Columns that share a scale: counted where the file says which, else the smallest that gives so many groups."""
    size = -(-k // num_groups)
    if groups is not None and num_groups > 1:
        size = int((groups == 0).sum())
        if not np.array_equal(groups, np.arange(k) // max(size, 1)):
            raise FormatError(f"g_idx: expected {num_groups} groups of one size, got others; {DAMAGED}")
    return size


def _stored_size(size: int, k: int) -> int:
    """The group size to store: 0 for the row, `size` where there is such a format, else the largest that divides it."""
    if size >= k:
        return 0
    fitting = [known for known in AXES["group_size"] if isinstance(known, int) and known and size % known == 0]
    if not fitting:
        raise FormatError(f"expected groups of a multiple of 16 weights, got {size}; convert the model to GGUF")
    return max(fitting)
