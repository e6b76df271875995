"""What ways of coding keys and values would cost, on those of a real model: for choosing kinds of KV cache.

    python bench/kv_codings.py MODEL text.txt [--positions 448]

Keys, values and queries of every layer are read out of a run with a cache of f32.  Each coding replaces keys, then
values, and the error is that of attention's output, relative, the mean over layers.  Channels are rearranged by their
mean magnitude in another part of the text: `by head` in an order for each key/value head, `by pair` in one of the pairs
of rotated channels for all layers and heads, which weights could take over when they are loaded.

bfp  block floating point: channels of a position share an exponent, 2**e <= largest < 2**(e + 1), and each has a
     mantissa of so many bits in two's complement, in steps of 2**(e + 2 - bits)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lutra.engine.llm import LLM

Coding = Callable[[np.ndarray], np.ndarray]  # [..., positions, D] to what is read back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--positions", type=int, default=448)
    o = parser.parse_args()
    llm = LLM.load(o.model, 1, o.positions, kv="f32")
    tokens = llm.tokenizer.encode(o.text.read_text("utf-8"))
    calibration, layers = (run(llm, tokens[i * o.positions : (i + 1) * o.positions]) for i in range(2))
    keys = np.stack([np.abs(k).mean(1) for _, k, _ in calibration])  # [layers, kv_heads, D]
    half = keys.shape[2] // 2
    pairs = np.argsort((keys[..., :half] + keys[..., half:]).sum((0, 1)))
    orders = {
        "": None,
        ", by head": np.argsort(keys, -1),
        ", by pair": np.broadcast_to(np.concatenate([pairs, pairs + half]), keys.shape),
    }
    wanted = [attention(*layer) for layer in layers]
    print("| coding | bits of a number | error by keys | error by values |\n|---|--:|--:|--:|")
    for name, (bits, coding) in codings(keys.shape[2]).items():
        for suffix, order in orders.items() if name.startswith("bfp4") else [("", None)]:
            by_keys = [attention(q, rearranged(k, coding, order, i), v) for i, (q, k, v) in enumerate(layers)]
            by_values = [attention(q, k, coding(v)) for q, k, v in layers] if not suffix and "kivi" not in name else []
            shown = [f"{error(found, wanted):.4f}" if found else "" for found in (by_keys, by_values)]
            print(f"| {name}{suffix} | {bits:.3g} | {shown[0]} | {shown[1]} |", flush=True)


def run(llm: LLM, tokens: list[int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of every layer, rotated queries f64 [kv_heads, group, positions, D], keys and values [kv_heads, positions, D]."""
    t, c = llm.transformer, llm.config
    queries: list[list[np.ndarray]] = [[] for _ in range(c.num_layers)]
    for start in range(0, len(tokens), t.chunk):
        piece = tokens[start : start + t.chunk]
        for number in t.run_stages(piece, start):
            if number % 2:  # attention of layer number // 2
                q = t.buffers.qkv[: len(piece), : c.num_heads * c.head_dim].astype(np.float64)
                queries[number // 2].append(q.reshape(len(piece), c.num_kv_heads, -1, c.head_dim))
    found = []
    for parts, cache in zip(queries, t.buffers.caches, strict=True):
        k = cache.keys.transpose(0, 1, 3, 2).reshape(c.num_kv_heads, -1, c.head_dim)
        k, v = (x[:, : len(tokens), : c.head_dim].astype(np.float64) for x in (k, cache.values))
        found.append((np.concatenate(parts).transpose(1, 2, 0, 3), k, v))
    return found


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    score = np.einsum("hgtd,hsd->hgts", q, k) / np.sqrt(q.shape[-1])
    score = np.where(np.tri(k.shape[1], dtype=bool), score, -np.inf)
    p = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("hgts,hsd->hgtd", p / p.sum(-1, keepdims=True), v)


def error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]))


def rearranged(k: np.ndarray, coding: Coding, order: np.ndarray | None, layer: int) -> np.ndarray:
    """The coding of channels in another order."""
    if order is None:
        return coding(k)
    found = np.empty_like(k)
    for head, permutation in enumerate(order[layer]):
        found[head][:, permutation] = coding(k[head][:, permutation])
    return found


def codings(head_dim: int) -> dict[str, tuple[float, Coding]]:
    """Name -> bits of a number with its share of scales, and the coding."""
    found: dict[str, tuple[float, Coding]] = {}
    for bits in (8, 4):
        found[f"int{bits}"] = bits + 32 / head_dim, partial(ranged, bits=bits)
        for size in {min(32, head_dim), min(16, head_dim)} - {head_dim}:
            found[f"int{bits}, blocks of {size}"] = bits + 32 / size, partial(blocks, partial(ranged, bits=bits), size)
        for size in sorted({min(32, head_dim), min(16, head_dim)}):
            found[f"bfp{bits}, blocks of {size}"] = bits + 8 / size, partial(blocks, partial(bfp, bits=bits), size)
    for size in (64, 32):
        found[f"kivi4, groups of {size}"] = 4 + 32 / size, partial(by_channel, size=size)
    return found


def ranged(x: np.ndarray, bits: int, axis: int = -1) -> np.ndarray:
    """A scale and a minimum along an axis."""
    least, most = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    step = np.maximum((most - least) / (2**bits - 1), 1e-30)
    return np.rint((x - least) / step) * step + least


def bfp(x: np.ndarray, bits: int) -> np.ndarray:
    """One exponent along the last axis."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-30)
    step = 2.0 ** (np.floor(np.log2(largest)) + 2 - bits)
    return np.clip(np.rint(x / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step


def blocks(coding: Coding, size: int, x: np.ndarray) -> np.ndarray:
    """The coding of blocks of neighbouring channels."""
    return coding(x.reshape(*x.shape[:-1], -1, size)).reshape(x.shape)


def by_channel(k: np.ndarray, size: int) -> np.ndarray:
    """Whole groups of positions, a scale and a minimum for each channel; what is left over stays."""
    found = k.copy()
    for start in range(0, k.shape[1] // size * size, size):
        found[:, start : start + size] = ranged(k[:, start : start + size], 4, axis=1)
    return found


if __name__ == "__main__":
    main()
