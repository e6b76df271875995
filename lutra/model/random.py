"""Decoders with random weights of any shape and format: what benchmarks run, without a download."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lutra.errors import RequestError
from lutra.formats import scales
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels import choose, embed, stored
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import DENSE_DTYPES, TiledWeight, round_up
from lutra.model.config import ModelConfig
from lutra.model.weights import LayerWeights, Linear, Weights
from lutra.quantize.methods import rtn

# hidden, ffn, layers, heads, kv_heads, vocabulary; heads are hidden / heads wide
SHAPES = {
    "tiny": (256, 688, 4, 4, 2, 4096),
    "125m": (768, 2048, 12, 12, 12, 32000),
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "2b": (2560, 6912, 30, 20, 5, 32000),  # BitNet b1.58 2B4T with a Llama-2 vocabulary
    "3b": (3200, 8640, 26, 32, 32, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "70b": (8192, 28672, 80, 64, 8, 32000),
}
Kind = Format | str  # what a matrix is made of: a format, or the name of an element type of tiles.DENSE_DTYPES
_BLOCK = 128  # rows of the largest tile of any order
_SAMPLE_ROWS = 2 * _BLOCK  # rows that are really random; the rest repeats them, which costs a kernel the same


def random_config(shape: str, activation: str = "relu2") -> ModelConfig:
    """The config of a named shape.  Raises RequestError for a name that is not in SHAPES."""
    if shape not in SHAPES:
        raise RequestError(f"expected a shape of {', '.join(SHAPES)}, got {shape!r}; choose one of them")
    hidden, ffn, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    return ModelConfig(
        architecture="bitnet", hidden_size=hidden, ffn_size=ffn, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=hidden // heads, vocab_size=vocabulary, max_context=4096, rope_theta=1e4,
        rope_scaling=None, norm_eps=1e-5, activation=activation, tied=True, attn_sub_norm=True, ffn_sub_norm=True,
        qk_norm=False, qkv_bias=False, bos_id=1, eos_ids=(2,), chat_template=None,
    )  # fmt: skip


def linear_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns, (N, K), of the matrices of one layer."""
    c = config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    return {
        "qkv": (queries + 2 * keys, c.hidden_size),
        "o": (c.hidden_size, queries),
        "gate_up": (2 * round_up(c.ffn_size, 16), c.hidden_size),
        "down": (c.hidden_size, c.ffn_size),
    }


def random_weights(
    config: ModelConfig, format: Kind, order: str | None = None, seed: int = 0, head: Kind | None = None
) -> Weights:
    """Every matrix in `format`; order forces a kernel family.

    seed    decides every weight; the same weights come in every order, so that kernel families can be compared
    head    format of the tied embedding and head, in its usual order; None: as all the others
    Raises FormatError for a format that the order cannot hold.
    """
    rng = np.random.default_rng(seed)
    sizes = linear_sizes(config)

    def linear(name: str) -> Linear:
        n, k = sizes[name]
        return Linear(_repeated(_tiles(rng, format, n, k, order), n))

    layers = [
        LayerWeights(
            attn_norm=np.ones(config.hidden_size, np.float32),
            qkv=(linear("qkv"),),
            q_norm=None,
            k_norm=None,
            attn_sub_norm=np.ones(sizes["o"][1], np.float32),
            o=linear("o"),
            ffn_norm=np.ones(config.hidden_size, np.float32),
            gate_up=linear("gate_up"),
            ffn_sub_norm=np.ones(config.ffn_size, np.float32),
            down=linear("down"),
        )
        for _ in range(config.num_layers)
    ]
    tables = [_repeated(tile, config.vocab_size) for tile in _head_tiles(rng, config, format, order, head)]
    return Weights(tables[0], layers, np.ones(config.hidden_size, np.float32), Linear(tables[-1]))


def weight_bytes(config: ModelConfig, format: Kind, order: str | None = None, head: Kind | None = None) -> int:
    """Bytes of memory that `random_weights` takes, without taking them.  Raises FormatError as it does."""
    rng = np.random.default_rng(0)
    layer = sum(_bytes(_tiles(rng, format, n, k, order), n) for n, k in linear_sizes(config).values())
    tables = _head_tiles(rng, config, format, order, head)
    return config.num_layers * layer + sum(_bytes(tile, config.vocab_size) for tile in tables)


def random_weight(format: Kind, n: int, k: int, order: str) -> TiledWeight:
    """One weight in the order of a family that takes it."""
    return _repeated(_tiles(np.random.default_rng(0), format, n, k, order), n)


def _bytes(tile: TiledWeight, n: int) -> int:
    return tile.num_bytes * round_up(n, _BLOCK) // tile.padded_n


def _tiles(rng: np.random.Generator, format: Kind, n: int, k: int, order: str | None) -> TiledWeight:
    return choose.tile(_sample(rng, format, n, k), order=order or _usual(format, n, k))


def _usual(format: Kind, n: int, k: int) -> str:
    return choose.family(format, n, k) if isinstance(format, Format) else "dense"


def _head_tiles(
    rng: np.random.Generator, config: ModelConfig, format: Kind, order: str | None, head: Kind | None
) -> list[TiledWeight]:
    """Sampled tiles of the embedding and the head: one for both where rows can be taken out of the head's order."""
    table = _sample(rng, head or format, config.vocab_size, config.hidden_size)
    order = order if head in (None, format) else None
    tile = choose.tile(table, order=order or _usual(head or format, config.vocab_size, config.hidden_size))
    return [tile] if tile.order in embed.ORDERS else [choose.tile(table, order="mad"), tile]


def _repeated(small: TiledWeight, n: int) -> TiledWeight:
    """Repeat a few tiles to the wanted N."""
    padded_n = round_up(n, _BLOCK)

    def repeat(values: np.ndarray) -> np.ndarray:
        return _repeat(values, padded_n, small.padded_n)

    return replace(small, n=n, padded_n=padded_n, **{name: repeat(getattr(small, name)) for name in stored.ARRAYS})


def _repeat(values: np.ndarray, rows: int, sample_rows: int) -> np.ndarray:
    if values.size == 1:  # a format without them
        return values
    out = aligned((values.size * rows // sample_rows,), values.dtype)
    for start in range(0, out.size, values.size):
        out[start : start + values.size] = values[: out.size - start]
    return out


def _sample(rng: np.random.Generator, format: Kind, n: int, k: int) -> QTensor | np.ndarray:
    """The first rows of a random matrix [n, k], as many as are really random; whole tiles of them."""
    n = min(round_up(n, _BLOCK), _SAMPLE_ROWS)
    if not isinstance(format, Format):
        dtype = next(dtype for dtype, name in DENSE_DTYPES.items() if name == format)
        return np.asarray(rng.standard_normal((n, k), np.float32) / np.sqrt(k)).astype(dtype)
    if format.is_float:
        return rtn(rng.standard_normal((n, k), np.float32) / np.sqrt(k), format)
    codes = rng.integers(0, format.num_codes, (n, k) if format.terms == 1 else (n, format.terms, k), dtype=np.uint8)
    levels = int(np.ptp(format.level_values)) + 1
    scale = 1 / np.sqrt(k) / levels
    beside = {name: (dtype, (n, columns)) for name, (dtype, columns) in format.beside(k).items()}
    arrays = {name: _scales(rng, *kind, scale) for name, kind in beside.items() if name.endswith("scales")}
    arrays |= {name: _scales(rng, *kind, -scale * levels / 2) for name, kind in beside.items() if name.endswith("mins")}
    if "zeros" in beside:
        arrays["zeros"] = rng.integers(0, format.num_codes, beside["zeros"][1], dtype=np.uint8)
    for name in ("super_scales", "super_mins"):
        if name in arrays:
            arrays[name] /= arrays[name].dtype.type(_LOWER_MIDDLE)
    return QTensor.from_codes(format, codes, **arrays)


# type of a lower scale -> stored numbers around _LOWER_MIDDLE
_LOWER_RANGES = {"u8": (32, 96), "i8": (32, 96), "e4m3": (0x60, 0x6C)}
_LOWER_MIDDLE = 64


def _scales(rng: np.random.Generator, dtype: str, size: tuple[int, int], about: float) -> np.ndarray:
    """Stored scales or mins; of two levels the lower are about 64 and the upper make up for it."""
    if dtype in _LOWER_RANGES:
        return rng.integers(*_LOWER_RANGES[dtype], size).astype(scales.DTYPES[dtype])
    if dtype == "e8m0":
        return (127 + round(np.log2(about)) + rng.integers(-1, 2, size)).astype(np.uint8)
    return (rng.uniform(0.5, 1.5, size) * about).astype(scales.DTYPES[dtype])
