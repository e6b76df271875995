"""FP8 checkpoints with a scale per block of 128 x 128, as DeepSeek and Qwen publish them.

weight             e4m3 [N, K]
weight_scale_inv   f32 or bf16 [N / 128, K / 128]   what a weight is multiplied with, despite the name

Sources   DeepSeek-V3, inference/kernel.py, weight_dequant; arXiv 2412.19437, section 3.3
"""

from __future__ import annotations

from typing import Any

from lutra.files.methods.floats import FP8_BLOCK, fp8, fp8_shape
from lutra.files.methods.layout import Layout, refuse


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layout of a quantization_config of quant_method fp8.  Raises FileError for blocks of another size."""
    block = config.get("weight_block_size")
    if block != [FP8_BLOCK, FP8_BLOCK]:
        raise refuse("weight_block_size", f"[{FP8_BLOCK}, {FP8_BLOCK}]", block, "convert the model to GGUF")
    return (LAYOUT,)


LAYOUT = Layout("fp8-blocks", ("weight", "weight_scale_inv"), ("bias",), fp8_shape,
                lambda parts: fp8(parts["weight"], parts["weight_scale_inv"]), "as stored, with its scale")  # fmt: skip
