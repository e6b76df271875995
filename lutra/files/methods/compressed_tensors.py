"""compressed-tensors checkpoints, as llm-compressor writes and vLLM reads them.

pack-quantized    weight_packed int32 [N, K * bits / 32]   codes + 2**(bits - 1) packed along K, low bits first
                  weight_scale float [N, G]; weight_shape int64 [2] = N, K; weight_g_idx int32 [K] with act-order
                  weight_zero_point int32 [N * bits / 32, G]   the same offset, packed along N
int-quantized     weight int8 [N, K], weight_scale [N, 1] or [1]
float-quantized   weight float8 e4m3 [N, K], weight_scale [N, 1], [1], [N / 128, K / 128] or [N, K / 128]
nvfp4-pack-quantized   weight_packed u8 [N, K / 2], weight_scale e4m3 [N, K / 16], weight_global_scale f32 [1] divides
mxfp4-pack-quantized   weight_packed u8 [N, K / 2], weight_scale u8 e8m0 [N, K / 32]

    W[n, k] = scale[n, g] * (code - zero)
Source: compressed-tensors, compressors/quantized_compressors and quantization/lifecycle/forward.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from lutra.errors import FormatError
from lutra.files.fields import neighbours
from lutra.files.methods.bitstream import WORD, unpack, unpack_whole
from lutra.files.methods.floats import fp8, fp8_shape, mxfp4, nvfp4, scale_name
from lutra.files.methods.gptq import grouped
from lutra.files.methods.layout import DAMAGED, SCALES, Layout, Parts, Weight, matrix, option, refuse
from lutra.formats import catalog
from lutra.formats.format import AXES
from lutra.formats.qtensor import QTensor

ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale")  # of int8 engines; not ours
PACKED = "re-coded to our packed order (lossless)"


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layouts of a quantization_config of quant_method compressed-tensors.

    raises   FileError   a format that is not listed above
    """
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise refuse("config_groups", "at least one group of linears", groups, "download config.json again")
    found = {layout.name: layout for group in groups.values() for layout in _of_group(group, config.get("format"))}
    return tuple(found.values())  # each once: a hostile config.json may state any number of groups


def _of_group(group: object, usual: object) -> tuple[Layout, ...]:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict):
        raise refuse("config_groups", "groups that describe their weights", group, "download config.json again")
    stated = {"format": group.get("format") or usual}
    format: str = option(stated, "format", ("pack-quantized", *LAYOUTS), "pack-quantized")
    if format == "pack-quantized":
        bits = option(weights, "num_bits", (2, 3, 4, 5, 6, 7, 8))
        return (
            Layout(f"compressed-int{bits}", ("weight_packed", "weight_scale", "weight_shape"),
                   ("weight_zero_point", "weight_g_idx", "bias", *ACTIVATIONS), partial(_shape, bits),
                   partial(_read, bits), PACKED),
        )  # fmt: skip
    return (LAYOUTS[format],)


def _shape(bits: int, parts: Parts) -> tuple[int, int]:
    """(N, K): what weight_shape says, if the packed codes are that many."""
    stated, scale = parts["weight_shape"], matrix(parts, "weight_scale", *SCALES, ml_dtypes.bfloat16)
    packed = matrix(parts, "weight_packed", np.int32)
    if "weight_zero_point" in parts:
        matrix(parts, "weight_zero_point", np.int32)
    if stated.size != 2 or stated.dtype.kind != "i":
        raise FormatError(f"weight_shape: expected N and K, got {stated.dtype} {stated.shape}; {DAMAGED}")
    n, k = (int(size) for size in stated.reshape(-1))
    widths = (-(-k * bits // WORD), -(-k // (WORD // bits)))
    if packed[0] != n or packed[1] not in widths or k < 1 or scale[0] != n:
        raise FormatError(f"expected {n} rows of {widths[0]} words for weight_shape {n} x {k} of {bits} bits, got "
                          f"{packed} and scales {scale}; {DAMAGED}")
    return n, k


def _unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Current versions pack a dense stream, older ones whole codes in a word; where both fit they are the same."""
    dense = words.shape[1] == -(-count * bits // WORD)
    return (unpack if dense else unpack_whole)(words, bits, count)


def _read(bits: int, parts: Parts) -> Weight:
    n, k = _shape(bits, parts)
    codes = _unpack(parts["weight_packed"], bits, k)
    scales = parts["weight_scale"]
    zeros = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
    if "weight_zero_point" in parts:
        zeros = np.ascontiguousarray(_unpack(parts["weight_zero_point"].T, bits, n).T)
    elif "weight_g_idx" not in parts and bits < 8:
        return _symmetric(codes, scales, bits)
    if zeros.shape != scales.shape:
        raise FormatError(f"weight_zero_point: expected {scales.shape}, got {zeros.shape}; {DAMAGED}")
    return grouped(codes, scales, zeros, bits, parts.get("weight_g_idx"))


def _symmetric(codes: np.ndarray, scales: np.ndarray, bits: int) -> Weight:
    """No zeros to store where they are all the middle and the format has the group size."""
    size = 0 if scales.shape[1] == 1 else -(-codes.shape[1] // scales.shape[1])
    if size not in AXES["group_size"]:
        return grouped(codes, scales, np.full(scales.shape, 2 ** (bits - 1), np.uint8), bits)
    return QTensor.from_codes(catalog.planes(bits, size, scale_dtype=scale_name(scales)), codes, scales)


def _int8_shape(parts: Parts) -> tuple[int, int]:
    n, k = matrix(parts, "weight", np.int8)
    if parts["weight_scale"].size not in (1, n):
        raise FormatError(f"weight_scale: expected 1 or {n} values, got {parts['weight_scale'].size}; {DAMAGED}")
    return n, k


def _read_int8(parts: Parts) -> QTensor:
    n, _ = _int8_shape(parts)
    codes = (parts["weight"].astype(np.int16) + 128).astype(np.uint8)
    scales = np.broadcast_to(parts["weight_scale"].reshape(-1, 1), (n, 1)).copy()
    return QTensor.from_codes(catalog.int8(0, scale_dtype=scale_name(scales)), codes, scales)


def _pairs_shape(parts: Parts) -> tuple[int, int]:
    n, half = matrix(parts, "weight_packed", np.uint8)
    return n, 2 * half


def _read_nvfp4(parts: Parts) -> QTensor:
    with np.errstate(divide="ignore", over="ignore"):
        factor = np.float32(1) / parts["weight_global_scale"].astype(np.float32).reshape(-1)[:1]
    return nvfp4(neighbours(parts["weight_packed"]), parts["weight_scale"], factor)


def _read_mxfp4(parts: Parts) -> QTensor:
    return mxfp4(neighbours(parts["weight_packed"]), parts["weight_scale"])


def _read_fp8(parts: Parts) -> QTensor:
    return fp8(parts["weight"], parts["weight_scale"])


_INT8 = Layout("compressed-int8", ("weight", "weight_scale"), ("bias", *ACTIVATIONS), _int8_shape, _read_int8, PACKED)
_FP8 = Layout("compressed-fp8", ("weight", "weight_scale"), ("bias", *ACTIVATIONS),
              fp8_shape, _read_fp8, "as stored, with its scale")  # fmt: skip
LAYOUTS = {
    "int-quantized": _INT8,
    "naive-quantized": _INT8,
    "float-quantized": _FP8,
    "nvfp4-pack-quantized": Layout("compressed-nvfp4", ("weight_packed", "weight_scale", "weight_global_scale"),
                                   ("bias", *ACTIVATIONS), _pairs_shape, _read_nvfp4, "re-coded to e2m1 (lossless)"),
    "mxfp4-pack-quantized": Layout("compressed-mxfp4", ("weight_packed", "weight_scale"), ("bias", *ACTIVATIONS),
                                   _pairs_shape, _read_mxfp4, "re-coded to e2m1 (lossless)"),
}  # fmt: skip
