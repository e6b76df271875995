"""Which quantisation methods of Hugging Face folders are read: config.json → the layouts of its linears."""

from __future__ import annotations

from typing import Any

from lutra.errors import FileError
from lutra.files.door import shown
from lutra.files.methods import awq, bitsandbytes, compressed_tensors, fp8, gptq, hqq, modelopt, vptq
from lutra.files.methods.layout import Chooser, Layout


def _auto_round(config: dict[str, Any]) -> tuple[Layout, ...]:
    """AutoRound packs as GPTQ or as AWQ does."""
    chosen = awq.layouts if config.get("packing_format") == "auto_round:auto_awq" else gptq.layouts
    return chosen(config)


# quantization_config.quant_method → how to choose the layouts; bitnet has its own tensors, see bitnet.py
METHODS: dict[str, Chooser] = {
    "gptq": gptq.layouts,
    "efficientqat": gptq.layouts,
    "awq": awq.layouts,
    "auto-round": _auto_round,
    "compressed-tensors": compressed_tensors.layouts,
    "modelopt": modelopt.layouts,
    "fp8": fp8.layouts,
    "bitsandbytes": bitsandbytes.layouts,
    "hqq": hqq.layouts,
    "vptq": vptq.layouts,
    "bitnet": lambda config: (),
}


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layouts that config.json says its linears may have; none where they are dense or BitNet's.

    raises   FileError    a method or variant that is not read
    """
    stated = config.get("quantization_config") or {}
    method = stated.get("quant_method", "bitnet") if isinstance(stated, dict) else stated
    if not isinstance(stated, dict) or not isinstance(method, str) or method not in METHODS:
        raise FileError(f"config.json: quantization_config: expected quant_method {', '.join(METHODS)} or none, got "
                        f"{shown(method)}; give the model before that quantisation, or as GGUF")
    return METHODS[method](stated)
