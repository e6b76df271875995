"""AWQ on a layer: whose inputs share a scale, and what the scale is folded into.

| linears     | inputs come from                                  | 1 / s goes into                          |
|-------------|---------------------------------------------------|------------------------------------------|
| q, k, v     | attn_norm                                         | its weight                               |
| o           | attn_sub_norm, else v where heads are not grouped | its weight, else the rows of v           |
| gate, up    | ffn_norm                                          | its weight                               |
| down        | ffn_sub_norm, else up                             | its weight, else the rows of up          |

The layer computes the same function of floats as before.  Where v serves several heads, o is not scaled.
Source   arXiv 2306.00978; AutoAWQ, awq/models/llama.py, for the groups
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.model.calibrate import STAGES, Inputs
from lutra.quantize.awq import clip_for_inputs, search_scale

if TYPE_CHECKING:
    from lutra.model.quantize import Layer

PRODUCERS = {"q": ("attn_norm", None), "o": ("attn_sub_norm", "v"), "gate": ("ffn_norm", None),
             "down": ("ffn_sub_norm", "up")}  # fmt: skip
UNCLIPPED = ("q", "k")  # AWQ leaves their ranges alone


def scale_layer(layer: Layer, inputs: Mapping[str, Inputs], clips: bool) -> None:
    """Find scales, fold them, and quantise every linear of a layer.

    clips   cut ranges for the outputs, too
    """
    weights = {name: layer.matrix(name) for names in STAGES for name in names}
    scales: dict[str, np.ndarray] = {}
    for names in STAGES:
        formats = [form for name in names if (form := layer.format(name)) is not None]
        fold = _fold(layer, weights, names[0])
        if len(formats) < len(names) or fold is None:
            continue
        seen = inputs[names[0]]
        bases = [layer.base(name) for name in names]
        scale = search_scale([weights[name] for name in names], seen.sample, formats, bases[0], seen.mean)
        for name in names:
            weights[name] = weights[name] * scale
        scales |= dict.fromkeys(names, scale)
        fold(scale)
    for name, w in weights.items():
        x = inputs[name].sample / scales.get(name, np.float32(1))
        base = layer.base(name)

        def quantise(w: np.ndarray, format: Format, x: np.ndarray = x, base=base) -> QTensor:  # type: ignore[no-untyped-def]
            return clip_for_inputs(w, x, format, base)

        layer.put(name, quantise if clips and name not in UNCLIPPED else base, w, np.square(x).mean(0))


def _fold(layer: Layer, weights: dict[str, np.ndarray], first: str):  # type: ignore[no-untyped-def]
    """What takes 1 / s into whatever makes the inputs; None where nothing can."""
    norm, linear = PRODUCERS[first]
    vector = layer.vector(norm)

    def into_norm(scale: np.ndarray) -> None:
        assert vector is not None
        layer.done[layer.prefix + norm] = vector / scale

    def into_rows(scale: np.ndarray) -> None:
        assert linear is not None
        weights[linear] = weights[linear] / scale[:, None]
        bias = layer.vector(f"{linear}.bias")
        if bias is not None:
            layer.done[f"{layer.prefix}{linear}.bias"] = bias / scale

    if vector is not None:
        return into_norm
    fits = linear is not None and len(weights[linear]) == weights[first].shape[1] and layer.format(linear) is not None
    return into_rows if fits else None
