"""Rotary frequencies: how fast each pair of a head turns, with the context-stretching rules that models ship.

Sources  RoFormer, arXiv 2104.09864; linear: arXiv 2306.15595; llama3: transformers, modeling_rope_utils.py
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from lutra.errors import FileError
from lutra.model.fields import Fields

if TYPE_CHECKING:
    from lutra.model.config import ModelConfig

MAX_THETA = 1e12
MAX_FACTOR = 1e6
LLAMA3_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
UNSUPPORTED = "use a model with plain, linear or llama3 rotary embedding"


def rope_frequencies(config: ModelConfig, factors: np.ndarray | None = None) -> np.ndarray:
    """Return the angle in radians by which each pair of a head turns per position.

    factors   float [head_dim / 2] or None    GGUF's rope_freqs tensor: divisors, llama3 scaling already worked out
    returns   float64 [head_dim / 2]          theta ** (-2 i / head_dim), scaled
    raises    FileError                       factors of another length, or not positive numbers
    """
    frequencies, scaling = _plain_frequencies(config.rope_theta, config.head_dim), config.rope_scaling
    if factors is not None:
        frequencies /= _checked_factors(factors, len(frequencies))
    elif scaling is not None and scaling["type"] == "linear":
        frequencies /= scaling["factor"]
    elif scaling is not None:
        frequencies *= _llama3(frequencies, scaling)
    return frequencies


def _plain_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Compute in decimals and round once: a library's pow may differ in its last bit from one machine to the next."""
    with localcontext() as context:
        context.prec = 40
        powers = [Decimal(theta) ** (Decimal(-2 * i) / head_dim) for i in range(head_dim // 2)]
    return np.array([float(power) for power in powers])


def _llama3(frequencies: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Return what to multiply by: fast pairs keep their pace, slow ones lose `factor`, those between get a blend."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # in the original context
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    slowed: np.ndarray = (1 - blend) / scaling["factor"] + blend
    return slowed


def _checked_factors(factors: np.ndarray, length: int) -> np.ndarray:
    values = np.asarray(factors, np.float64)
    if values.shape != (length,) or not (np.isfinite(values) & (values > 0)).all():
        raise FileError(
            f"rope_freqs: expected {length} positive numbers, got shape {values.shape}; convert the model again"
        )
    return values


def scaling_from_gguf(fields: Fields) -> dict[str, Any] | None:
    """Read {arch}.rope.scaling.*; llama3 scaling comes as the tensor rope_freqs instead.  raises FileError."""
    fields.require("rope.scaling.type", ("none", "linear"), UNSUPPORTED)
    if fields.get("rope.scaling.type") == "none":
        return None
    key = "rope.scaling.factor" if fields.get("rope.scaling.factor") is not None else "rope.scale_linear"  # old name
    factor = fields.number(key, 0.0, MAX_FACTOR, 1.0)
    return None if factor in (0.0, 1.0) else {"type": "linear", "factor": factor}


def scaling_from_hugging_face(fields: Fields, default_theta: float) -> tuple[float, dict[str, Any] | None]:
    """Read rope_parameters (transformers 5) or rope_theta and rope_scaling (before).

    returns   theta, and None | {"type": "linear", "factor"} | {"type": "llama3", + LLAMA3_NUMBERS}
    raises    FileError    another kind of scaling, or numbers without a meaning
    """
    key = "rope_parameters" if fields.get("rope_parameters") is not None else "rope_scaling"
    stated = fields.get(key) or {}
    if not isinstance(stated, dict):
        raise fields.refuse(key, "an object", stated)
    inner = Fields(fields.path, {f"{key}.{name}": value for name, value in stated.items()}, f"{key}.")
    theta_source = inner if inner.get("rope_theta") is not None else fields
    theta = theta_source.number("rope_theta", 1.0, MAX_THETA, default_theta)
    for source in (fields, inner):
        source.require("partial_rotary_factor", (1,), "use a model that rotates whole heads")
    kind_key = "rope_type" if inner.get("rope_type") is not None else "type"
    inner.require(kind_key, ("default", "linear", "llama3"), UNSUPPORTED)
    kind = inner.get(kind_key)
    if kind in (None, "default"):
        return theta, None
    if kind == "linear":
        return theta, {"type": kind, "factor": inner.number("factor", 1e-6, MAX_FACTOR)}
    scaling = {"type": kind} | {name: inner.number(name, 1e-6, 1e9) for name in LLAMA3_NUMBERS}
    if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise inner.refuse("high_freq_factor", "more than low_freq_factor", scaling["high_freq_factor"])
    return theta, scaling
