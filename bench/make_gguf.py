"""Write a GGUF file of a named shape with random weights, for another engine to run, or for lutra.

    python bench/make_gguf.py --shape 2b --type TQ2_0 FILE.gguf

A Llama model with a tied head, every matrix in one block type, norms in float32, and a made-up vocabulary.
Rows repeat a few random ones and are written as they are made, so the file may be larger than memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

from lutra.errors import LutraError, RequestError
from lutra.model.config import ModelConfig
from lutra.model.random import SHAPES, random_config

SAMPLE_ROWS = 64  # that are really random
# Block types the gguf package cannot make: where the float16 scales of a random block stand, as halves of the block
SCALES_AT = {"Q2_K": (40, 41), "Q3_K": (54,), "Q4_K": (0, 1), "Q5_K": (0, 1), "Q6_K": (104,)}
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", *SCALES_AT)


def tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor: (N, K), or (N,) for norms."""
    hidden, width = config.hidden_size, config.head_dim
    queries, keys = config.num_heads * width, config.num_kv_heads * width
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,), "attn_q": (queries, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden),
        "attn_output": (hidden, queries), "ffn_norm": (hidden,), "ffn_gate": (config.ffn_size, hidden),
        "ffn_up": (config.ffn_size, hidden), "ffn_down": (hidden, config.ffn_size),
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    for index in range(config.num_layers):
        found |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
    return found


def random_rows(rng: np.random.Generator, rows: int, columns: int, name: str) -> np.ndarray:
    """A few rows of random weights in a block type, as the file holds them: uint8 [rows, bytes]."""
    kind = GGMLQuantizationType[name]
    block, block_bytes = quants.GGML_QUANT_SIZES[kind]
    if columns % block:
        raise RequestError(
            f"expected rows of a multiple of {block} weights for {name}, got {columns}; choose a --shape"
        )
    if name in SCALES_AT:
        packed = rng.integers(0, 256, (rows, columns // block, block_bytes), dtype=np.uint8)
        for at in SCALES_AT[name]:
            packed.view(np.float16)[:, :, at] = rng.uniform(0.5, 1.5, packed.shape[:2]) * 1e-3
        return packed.reshape(rows, -1)
    weights = (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)
    return quants.quantize(weights, kind).view(np.uint8)


def describe(writer: GGUFWriter, config: ModelConfig) -> None:
    """Write the sizes of the model and its vocabulary."""
    writer.add_name("random")
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    special = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
    special += [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
    words = [(f"▁w{i}", TokenType.NORMAL) for i in range(config.vocab_size - len(special))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in special + words])
    writer.add_token_scores([-float(i) for i in range(config.vocab_size)])
    writer.add_token_types([kind for _, kind in special + words])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write(path: Path, config: ModelConfig, name: str, seed: int = 0) -> None:
    """Write the file, tensor by tensor."""
    rng = np.random.default_rng(seed)
    kind, shapes = GGMLQuantizationType[name], tensors(config)
    samples = {k: random_rows(rng, SAMPLE_ROWS, k, name) for _, k in {s for s in shapes.values() if len(s) == 2}}
    writer = GGUFWriter(path, "llama")
    describe(writer, config)
    for tensor, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            row_bytes = samples[shape[1]].shape[1]
            writer.add_tensor_info(tensor, (shape[0], row_bytes), np.dtype(np.uint8), shape[0] * row_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape in shapes.values():
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            writer.write_tensor_data(np.resize(samples[shape[1]], (shape[0], samples[shape[1]].shape[1])))
    writer.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path)
    options.add_argument("--shape", default="2b", choices=SHAPES)
    options.add_argument("--type", default="Q4_0", choices=TYPES)
    chosen = options.parse_args()
    try:
        write(chosen.file, random_config(chosen.shape, activation="silu"), chosen.type)
    except (OSError, LutraError) as error:
        sys.exit(f"error: {error}")
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1e6:.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
