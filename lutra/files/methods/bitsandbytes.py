"""bitsandbytes checkpoints of 4 bits: NF4 and FP4, blocks of the flattened weight, with scales quantised again or not.

weight                u8 [N * K / 2, 1]   flat, row by row, the first code in the high four bits
weight.absmax         f32 [blocks], or u8: nested_quant_map[u8] * nested_absmax[block / 256] + nested_offset
weight.quant_map      f32 [16]            what each code is worth
weight.quant_state.bitsandbytes__nf4      u8 text: JSON of shape, blocksize, nested_blocksize, nested_offset, quant_type

Levels of NF4 become multiples of 1/127.  In blocks of 64 that is an error 44 dB below normal weights, 42 dB below a t
distribution of 5 degrees; NF4 itself has 20.7 and 19.6 dB, of which 0.03 and 0.02 go.
Source: bitsandbytes, bitsandbytes/functional.py (QuantState)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.files.methods.layout import DAMAGED, Layout, Parts, option
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.formats.tables import TABLES

STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
MAX_STATE_BYTES = 1 << 16
NF4_UNIT = np.float32(127)  # our table counts in 127ths of the largest level


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layouts of a quantization_config of quant_method bitsandbytes.  Raises FileError unless it has 4 bits."""
    option(config, "load_in_4bit", (True,), config.get("_load_in_4bit"))
    return tuple(
        Layout("bnb-" + state[-3:], ("weight", "weight.absmax", "weight.quant_map", state), ("bias", *NESTED),
               lambda parts: _checked(parts).shape, read, recoded)
        for state, read, recoded in (
            (STATES[0], _read_nf4, "re-coded to nf4, levels rounded to 1/127 of the largest"),
            (STATES[1], _read_fp4, "multiplied out to f32"),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class State:
    """What the JSON beside a weight says, checked."""

    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float


def _state(parts: Parts) -> State:
    text = next(parts[name] for name in STATES if name in parts)
    try:
        raw = json.loads(text.tobytes()) if text.nbytes <= MAX_STATE_BYTES else None
    except (ValueError, RecursionError):
        raw = None
    raw = raw if isinstance(raw, dict) else {}
    shape, block, nested = raw.get("shape"), raw.get("blocksize"), raw.get("nested_blocksize", 256)
    stated = [*shape, block, nested] if isinstance(shape, list) and len(shape) == 2 else []
    sizes = [size for size in stated if type(size) is int and 0 < size < 1 << 31]
    offset = raw.get("nested_offset", 0.0)  # an int of any length would not fit a float; writers give none
    if len(sizes) != 4 or type(offset) is not float:
        raise FormatError(f"quant_state: expected shape [N, K], blocksize and nested_offset, got others; {DAMAGED}")
    return State((sizes[0], sizes[1]), sizes[2], sizes[3], float(offset))


def _checked(parts: Parts) -> State:
    """What is said of a weight that has the size for it."""
    state = _state(parts)
    n, k = state.shape
    if parts["weight"].size * 2 != n * k or k % state.block or parts["weight"].dtype != np.uint8:
        raise FormatError(f"weight: expected {n * k // 2} bytes for {n} x {k} in blocks of {state.block} that do not "
                          f"cross rows, got {parts['weight'].size}; {DAMAGED}")  # fmt: skip
    return state


def _codes(parts: Parts, state: State) -> np.ndarray:
    packed = parts["weight"].reshape(-1)
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(state.shape)


def _scales(parts: Parts, state: State) -> np.ndarray:
    """Largest magnitude of every block: f32 [N, K / block]."""
    absmax = parts["weight.absmax"].reshape(-1)
    n, k = state.shape
    if absmax.dtype == np.uint8:
        if any(name not in parts for name in NESTED) or parts[NESTED[1]].size != 256:
            raise FormatError(f"weight.absmax: expected nested_absmax and 256 values of nested_quant_map; {DAMAGED}")
        outer = parts[NESTED[0]].reshape(-1).astype(np.float32)
        if len(outer) != -(-len(absmax) // state.nested_block):
            raise FormatError(f"nested_absmax: expected one per {state.nested_block} blocks, got {len(outer)}; "
                              f"{DAMAGED}")  # fmt: skip
        values = parts[NESTED[1]].reshape(-1).astype(np.float32)[absmax]
        absmax = values * outer[np.arange(len(absmax)) // state.nested_block] + np.float32(state.nested_offset)
    if len(absmax) != n * (k // state.block):
        raise FormatError(f"weight.absmax: expected {n * (k // state.block)} blocks, got {len(absmax)}; {DAMAGED}")
    return absmax.astype(np.float32).reshape(n, -1)


def _read_nf4(parts: Parts) -> QTensor | np.ndarray:
    state, levels = _checked(parts), _levels(parts)
    if not np.array_equal(np.rint(levels * NF4_UNIT), TABLES["nf4"]):
        return _multiplied_out(parts, state, levels)  # a table of somebody's own
    form = catalog.table("nf4", state.block, scale_dtype="f32")
    return QTensor.from_codes(form, _codes(parts, state), _scales(parts, state) / NF4_UNIT)


def _read_fp4(parts: Parts) -> np.ndarray:
    return _multiplied_out(parts, _checked(parts), _levels(parts))


def _levels(parts: Parts) -> np.ndarray:
    levels: np.ndarray = parts["weight.quant_map"].astype(np.float32).reshape(-1)
    if levels.size != 16:
        raise FormatError(f"weight.quant_map: expected 16 levels, got {levels.size}; {DAMAGED}")
    return levels


def _multiplied_out(parts: Parts, state: State, levels: np.ndarray) -> np.ndarray:
    scales = _scales(parts, state)
    with np.errstate(over="ignore", invalid="ignore"):
        values: np.ndarray = levels[_codes(parts, state)] * np.repeat(scales, state.block, axis=1)
    if not np.isfinite(values).all():
        raise FormatError(f"weight: expected finite values, got inf or nan; {DAMAGED}")
    return values
