"""AWQ checkpoints: AutoAWQ's GEMM and GEMV layouts; AutoRound writes the first too.

gemm   qweight int32 [K, N / 8]    nibble i of word c is the code of output 8 c + ORDER[i]
       qzeros  int32 [G, N / 8]    the same order; the zero itself
       scales  f16   [G, N]
gemv   qweight int32 [N, K / 8]    nibbles in order; qzeros [N, Zw] and scales [N, 8 Zw] padded beyond G

    W[n, k] = scales[g, n] * (code[n, k] - zero[g, n])

Source: AutoAWQ, awq/modules/linear/gemm.py, gemv.py and utils/packing_utils.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.files.methods.bitstream import unpack_whole
from lutra.files.methods.gptq import grouped
from lutra.files.methods.layout import DAMAGED, SCALES, Layout, Parts, matrix, option
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted

PER_WORD = 8  # nibbles
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output of each nibble of a word
SLOT = tuple(ORDER.index(output) for output in range(PER_WORD))


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layout of a quantization_config of quant_method awq.  Raises FileError for another width or version."""
    option(config, "bits", (4,), config.get("w_bit", 4))
    version = config.get("version", "gemm")
    version = option(config | {"version": version.lower() if isinstance(version, str) else version}, "version",
                     ("gemm", "gemv"))  # fmt: skip
    group_size = config.get("group_size", config.get("q_group_size", 128))
    if version == "gemm":
        return (_layout("gemm", _gemm_shape, _read_gemm),)
    if type(group_size) is not int or group_size < 1:
        group_size = option(config, "group_size", (16, 32, 64, 128, 256))
    return (_layout("gemv", _gemv_shape, partial(_read_gemv, group_size)),)


def _layout(version: str, shape: Any, read: Any) -> Layout:
    return Layout(f"awq-{version}", ("qweight", "qzeros", "scales"), ("bias",), shape, read,
                  "re-coded to our packed order (lossless)")  # fmt: skip


def _matrices(parts: Parts) -> list[tuple[int, int]]:
    return [matrix(parts, "qweight", np.int32), matrix(parts, "qzeros", np.int32), matrix(parts, "scales", *SCALES)]


def _gemm_shape(parts: Parts) -> tuple[int, int]:
    qweight, qzeros, scales = _matrices(parts)
    k, n = qweight[0], PER_WORD * qweight[1]
    if qzeros != (scales[0], qweight[1]) or scales[1] != n:
        raise FormatError(f"expected qzeros and scales for {n} outputs, got {qzeros} and {scales}; {DAMAGED}")
    return n, k


def _gemv_shape(parts: Parts) -> tuple[int, int]:
    qweight, qzeros, scales = _matrices(parts)
    n, k = qweight[0], PER_WORD * qweight[1]
    if qzeros[0] != n or scales != (n, PER_WORD * qzeros[1]):
        raise FormatError(f"expected qzeros and scales for {n} outputs, got {qzeros} and {scales}; {DAMAGED}")
    return n, k


def _outputs(words: np.ndarray) -> np.ndarray:
    """Nibbles in the order of the outputs: int32 [R, N / 8] to uint8 [R, N]."""
    nibbles = unpack_whole(words, 4, PER_WORD * words.shape[1])
    return nibbles.reshape(len(words), -1, PER_WORD)[:, :, SLOT].reshape(len(words), -1)


def _read_gemm(parts: Parts) -> QTensor | Adapted:
    _gemm_shape(parts)
    codes, zeros = _outputs(parts["qweight"]).T, _outputs(parts["qzeros"]).T
    return grouped(np.ascontiguousarray(codes), np.ascontiguousarray(parts["scales"].T), zeros, 4)


def _read_gemv(group_size: int, parts: Parts) -> QTensor | Adapted:
    n, k = _gemv_shape(parts)
    num_groups = -(-k // group_size)
    zeros = unpack_whole(parts["qzeros"], 4, PER_WORD * parts["qzeros"].shape[1])
    if num_groups > zeros.shape[1]:
        raise FormatError(f"expected {num_groups} groups of {group_size}, got {zeros.shape[1]}; {DAMAGED}")
    codes = unpack_whole(parts["qweight"], 4, k)
    return grouped(codes, np.ascontiguousarray(parts["scales"][:, :num_groups]), zeros[:, :num_groups], 4)
