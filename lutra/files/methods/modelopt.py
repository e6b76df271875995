"""NVIDIA ModelOpt checkpoints: NVFP4 and FP8.

NVFP4   weight u8 [N, K / 2], even column in the low nibble; weight_scale e4m3 [N, K / 16]; weight_scale_2 f32 [1]
FP8     weight e4m3 [N, K]; weight_scale f32 [1]
Source: TensorRT-Model-Optimizer, modelopt/torch/export/quant_utils.py
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.files.fields import neighbours
from lutra.files.methods.floats import fp8, fp8_shape, nvfp4
from lutra.files.methods.layout import Layout, Parts, matrix, option
from lutra.formats.qtensor import QTensor

ALGORITHMS = ("NVFP4", "FP8")
BESIDE = ("input_scale", "bias", "k_scale", "v_scale")


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layout of a quantization_config of quant_method modelopt.  Raises FileError for another quant_algo."""
    inner = config.get("quantization", config)
    algorithm = option(inner if isinstance(inner, dict) else {}, "quant_algo", ALGORITHMS)
    return (LAYOUTS[algorithm],)


def _read_nvfp4(parts: Parts) -> QTensor:
    factor = parts["weight_scale_2"].astype(np.float32).reshape(-1)
    return nvfp4(neighbours(parts["weight"]), parts["weight_scale"], factor)


def _nvfp4_shape(parts: Parts) -> tuple[int, int]:
    n, half = matrix(parts, "weight", np.uint8)
    return n, 2 * half


LAYOUTS = {
    "NVFP4": Layout("modelopt-nvfp4", ("weight", "weight_scale", "weight_scale_2"), BESIDE, _nvfp4_shape, _read_nvfp4,
                    "re-coded to e2m1 (lossless)"),
    "FP8": Layout("modelopt-fp8", ("weight", "weight_scale"), BESIDE, fp8_shape,
                  lambda parts: fp8(parts["weight"], parts["weight_scale"]), "as stored, with its scale"),
}  # fmt: skip
