"""A GGUF writer for tests, from the layout description; it shares no code with the reader.

    write_gguf(path, {"general.architecture": "llama"}, [("token_embd.weight", "F32", array)])
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

TYPE_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11,
            "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20,
            "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39,
            "NVFP4": 40, "Q1_0": 41, "Q2_0": 42}  # fmt: skip
DENSE = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# name: (weights per block, bytes per block, {byte where an f16 lies: its mean}); means that give weights near +-0.1
BLOCKS: dict[str, tuple[int, int, dict[int, float]]] = {
    "Q4_0": (32, 18, {0: 0.025}),
    "Q4_1": (32, 20, {0: 0.025, 2: -0.19}),
    "Q5_0": (32, 22, {0: 0.012}),
    "Q5_1": (32, 24, {0: 0.012, 2: -0.19}),
    "Q8_0": (32, 34, {0: 0.0016}),
    "Q2_K": (256, 84, {80: 0.017, 82: 0.025}),
    "Q3_K": (256, 110, {108: 0.003}),
    "Q4_K": (256, 144, {0: 0.0008, 2: 0.006}),
    "Q5_K": (256, 176, {0: 0.0004, 2: 0.006}),
    "Q6_K": (256, 210, {208: 0.0001}),
    "TQ1_0": (256, 54, {52: 0.12}),
    "TQ2_0": (256, 66, {64: 0.12}),
    "Q1_0": (128, 18, {0: 0.1}),
    "Q2_0": (64, 18, {0: 0.08}),
    "IQ2_XXS": (256, 66, {0: 0.0015}),
    "IQ2_XS": (256, 74, {0: 0.0015}),
    "IQ3_XXS": (256, 98, {0: 0.0007}),
    "IQ1_S": (256, 50, {0: 0.012}),
    "IQ4_NL": (32, 18, {0: 0.0015}),
    "IQ3_S": (256, 110, {0: 0.0008}),
    "IQ2_S": (256, 82, {0: 0.0015}),
    "IQ4_XS": (256, 136, {0: 0.0001}),
    "IQ1_M": (256, 56, {}),
    "MXFP4": (32, 17, {}),
    "NVFP4": (64, 36, {}),
}
# types whose scales are not f16 in one place: [first byte, last byte + 1) → the smallest and largest value of each
BYTES = {"MXFP4": ((0, 1), (120, 126)), "NVFP4": ((0, 4), (1, 56))}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> tuple[int, bytes]:
    """Return (type id, bytes) of a bool, int (u32, else i64), float (f32), str, or a list of one of them."""
    if isinstance(item, bool):
        return 7, struct.pack("<B", item)
    if isinstance(item, int):
        return (4, struct.pack("<I", item)) if 0 <= item < 2**32 else (11, struct.pack("<q", item))
    if isinstance(item, float):
        return 6, struct.pack("<f", item)
    if isinstance(item, str):
        return 8, string(item)
    elements = [value(element) for element in item]
    assert len({kind for kind, _ in elements}) == 1, "a GGUF array holds one type"
    return 9, struct.pack("<IQ", elements[0][0], len(elements)) + b"".join(raw for _, raw in elements)


def description(name: str | bytes, dims: tuple[int, ...], type_id: int, offset: int) -> bytes:
    """Describe one tensor; `dims` with the contiguous axis first, as GGUF has them."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def header(metadata: bytes, descriptions: list[bytes], num_key_values: int, version: int = 3) -> bytes:
    counts = struct.pack("<4sIQQ", b"GGUF", version, len(descriptions), num_key_values)
    return counts + metadata + b"".join(descriptions)


def pad(raw: bytes, alignment: int) -> bytes:
    return raw + b"\0" * (-len(raw) % alignment)


def write_gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: list[tuple[str, str, np.ndarray]],
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Write a file of tensors (name, type, values): dense values as floats, blocks as uint8 [N, K / block, bytes]."""
    if alignment != 32:
        metadata = {**metadata, "general.alignment": alignment}
    pairs = b""
    for key, item in metadata.items():
        type_id, raw = value(item)
        pairs += string(key) + struct.pack("<I", type_id) + raw
    descriptions, data = [], b""
    for name, type_name, values in tensors:
        if type_name in DENSE:
            dims, raw = values.shape[::-1], values.astype(DENSE[type_name]).tobytes()
        else:
            dims, raw = (values.shape[1] * BLOCKS[type_name][0], values.shape[0]), values.tobytes()
        data = pad(data, alignment)
        descriptions.append(description(name, dims, TYPE_IDS[type_name], len(data)))
        data += raw
    path.write_bytes(pad(header(pairs, descriptions, len(metadata), version), alignment) + data)
    return path


def random_blocks(rng: np.random.Generator, type_name: str, n: int, k: int) -> np.ndarray:
    """Return valid random blocks uint8 [N, K / block, bytes]: any codes, scales near the table's mean."""
    block_size, block_bytes, floats = BLOCKS[type_name]
    assert k % block_size == 0
    blocks = rng.integers(0, 256, (n, k // block_size, block_bytes), dtype=np.uint8)
    if type_name == "TQ2_0":
        blocks &= ~(blocks & blocks >> 1 & 0x55)  # code 3 becomes 2
    if type_name in BYTES:
        (first, last), (low, high) = BYTES[type_name]
        blocks[..., first:last] = rng.integers(low, high, (*blocks.shape[:2], last - first))
    if type_name == "IQ1_M":  # d = 0.012 in the top nibbles of four words
        for byte, nibble in zip((49, 51, 53, 55), (0x5, 0x2, 0x2, 0x2), strict=True):
            blocks[..., byte] = blocks[..., byte] & 15 | nibble << 4
    swing = rng.uniform(0.5, 1.5, (n, k // block_size, 1))
    for at, mean in floats.items():
        blocks[..., at : at + 2] = (mean * swing).astype("<f2").view(np.uint8)
    return blocks
