"""Published BitNet b1.58 weights in Hugging Face files: packed bytes with a scale beside them, or 16-bit masters.

Sources: transformers, integrations/bitnet.py (packing and both scale conventions); microsoft/bitnet-b1.58-2B-4T.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files.door import shown
from lutra.formats import catalog
from lutra.formats.packing import words_from_hf_bitnet
from lutra.formats.qtensor import QTensor

SCALE_SUFFIX = "_scale"  # "...q_proj.weight" has its scale in "...q_proj.weight_scale"

# quantization_config.linear_class -> what the stored scale does to the integer product.  Falcon and HF1BitLLM say
# "bitlinear" or nothing and store 1 / mean|W|; Microsoft's 2B-4T says "autobitlinear" and stores mean|W|.
SCALE_DIVIDES = {None: True, "bitlinear": True, "autobitlinear": False}
MASTER_TEXT = "as stored (master weights: ternary by absmean when the model is loaded)"


def is_bitnet(config: dict[str, Any]) -> bool:
    """Return whether config.json describes the BitNet family, whose dense linears are masters of ternary ones."""
    architectures = config.get("architectures")
    names = [config.get("model_type"), *(architectures if isinstance(architectures, list) else [])]
    return any(isinstance(name, str) and name.lower().startswith("bitnet") for name in names)


def scale_divides(config: dict[str, Any]) -> bool:
    """Return whether `weight_scale` divides (True) or multiplies (False) the integer product.

    config   whose quantization_config, an object, is of quant_method bitnet or is missing
    raises   FileError    an unknown linear_class
    """
    quantization = config.get("quantization_config") or {}
    linear_class = quantization.get("linear_class")
    if linear_class not in tuple(SCALE_DIVIDES):  # a tuple, since a hostile value need not be hashable
        raise FileError(f"config.json: linear_class: expected bitlinear or autobitlinear, got {shown(linear_class)}; "
                        "whether its scale multiplies or divides is not known: correct config.json")
    return SCALE_DIVIDES[linear_class]


def unpack(packed: np.ndarray, weight_scale: np.ndarray, divides: bool) -> QTensor:
    """Turn packed bytes into a ternary weight with one scale.

    packed        uint8 [N / 4, K]    bits 2i, 2i+1 of row r hold row i * N/4 + r, plus 1
    weight_scale  float [1]
    returns       QTensor (N, K), ternary, f32 scale per row (all equal)
    raises        FormatError         code 3, or a scale that is not finite and positive
    """
    scale = np.float32(weight_scale.reshape(-1)[0])
    if not (np.isfinite(scale) and scale > 0):
        raise FormatError(f"weight_scale: expected a finite number above 0, got {scale}; download the file again")
    with np.errstate(over="ignore"):  # 1 / 1e-40 is inf, which QTensor refuses
        value = np.float32(1) / scale if divides else scale
    rows = 4 * len(packed)
    words = words_from_hf_bitnet(packed)
    return QTensor(catalog.ternary(), (rows, packed.shape[1]), words, np.full((rows, 1), value, np.float32))
