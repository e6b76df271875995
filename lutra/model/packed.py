"""Models packed: every array as kernels read it, written once, then mapped and used where it lies.

name of an array                what it is
layers.0.qkv.0.codes            TiledWeight.codes; .scales .zeros .mins .super_scales .super_mins .books as the format
                                has them; .bias f32 [padded_n]; .perm i32 [K] and .factors f32 [K] where inputs are put
                                in order first
layers.0.o.low_rank_u, _v       weights of their own, [N, r] and [r, K], where a low-rank term is added
layers.0.o  .gate_up  .down     the same; q, k and v lie side by side as qkv.0, or are qkv.0 .1 .2 if formats differ
layers.0.attn_norm  ...         f32 vectors, by LayerWeights' names
final_norm, head, embed         embed only where the head is not the embedding
rope_freqs                      f32 [head_dim / 2], where the model has it
tokenizer.json, vocabulary.json one of the two, see tokenizer.to_stored

The header states the config, the tokenizer's settings, every format by its axes, and every weight's order and sizes.
All orders mean the same on every instruction set, so a file runs on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files import packed
from lutra.files.container import read_formats, state_formats
from lutra.files.door import refusal, shown
from lutra.files.model_file import ModelFile
from lutra.formats import scales
from lutra.formats.format import Format
from lutra.formats.vectors import VectorFormat
from lutra.kernels import embed, stored
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import DENSE_DTYPES, ROWS, TiledWeight, round_up
from lutra.model.config import ModelConfig, to_json
from lutra.model.tokenizer import TOKENIZER_JSON, VOCABULARY_JSON
from lutra.model.weights import Inputs, LayerWeights, Linear, LowRank, Weights

LOW_RANK = ("low_rank_u", "low_rank_v")
SIZES = ("n", "k", "padded_n", "padded_k")
ROPE = "rope_freqs"
AGAIN = "pack the model again"
MAX_SIZE = 1 << 31
FLOATS = [scales.DTYPES[name] for name in scales.FLOATS]


def linears(weights: Weights) -> Iterator[tuple[str, Linear]]:
    """Every weight of a decoder by its name, in the order in which a step reads them."""
    if weights.embed is not weights.head.weight:
        yield "embed", Linear(weights.embed)
    for index, layer in enumerate(weights.layers):
        prefix = f"layers.{index}."
        yield from ((f"{prefix}qkv.{part}", linear) for part, linear in enumerate(layer.qkv))
        yield from ((prefix + name, getattr(layer, name)) for name in ("o", "gate_up", "down"))
    yield "head", weights.head


def _vectors(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    for index, layer in enumerate(weights.layers):
        values = ((f"layers.{index}.{field.name}", getattr(layer, field.name)) for field in fields(layer))
        yield from ((name, value) for name, value in values if isinstance(value, np.ndarray))
    yield "final_norm", weights.final_norm


def write(
    path: Path,
    config: ModelConfig,
    tokenizer: tuple[dict[str, Any], dict[str, bytes]],
    weights: Weights,
    factors: np.ndarray | None,
    progress: packed.Progress = lambda label, done, total: None,
) -> None:
    """Write a packed file.

    tokenizer   of tokenizer.to_stored        factors   GGUF's rope_freqs
    raises      FileError   see files/packed.write
    """
    settings, texts = tokenizer
    named = dict(_with_low_rank(linears(weights)))
    formats = [linear.weight.format for linear in named.values() if linear.weight.format is not None]
    header = {
        "config": to_json(config),
        "tokenizer": settings,
        "formats": state_formats(formats),
        "weights": {name: _stated(linear.weight) for name, linear in named.items()},
    }
    arrays = {name: np.frombuffer(text, np.uint8) for name, text in texts.items()} | dict(_vectors(weights))
    if factors is not None:
        arrays[ROPE] = np.asarray(factors, np.float32)
    parts = {f"{name}.{part}": array for name, linear in named.items() for part, array in _arrays(linear).items()}
    arrays |= {name: array for name, array in parts.items() if not name.endswith(".codes")}  # all that `load` looks at
    arrays |= {name: array for name, array in parts.items() if name.endswith(".codes")}
    packed.write(path, header, arrays, progress)


def _with_low_rank(named: Iterator[tuple[str, Linear]]) -> Iterator[tuple[str, Linear]]:
    for name, linear in named:
        yield name, linear
        if linear.low_rank is not None:
            parts = zip(LOW_RANK, (linear.low_rank.u, linear.low_rank.v), strict=True)
            yield from ((f"{name}.{part}", Linear(weight)) for part, weight in parts)


def _stated(weight: TiledWeight) -> dict[str, Any]:
    kind = weight.dtype if weight.format is None else weight.format.name
    return {"order": weight.order, "format": kind} | {name: getattr(weight, name) for name in SIZES}


def _arrays(linear: Linear) -> dict[str, np.ndarray]:
    weight = linear.weight
    stored.check(weight)
    arrays = {name: getattr(weight, name).view(dtype) for name, dtype in _dtypes(weight.format).items()}
    arrays |= {} if linear.bias is None else {"bias": linear.bias}
    inputs = linear.inputs
    return arrays if inputs is None else arrays | {"perm": inputs.perm, "factors": inputs.factors}


def _dtypes(format: Format | VectorFormat | None) -> dict[str, np.dtype[Any]]:
    """The arrays a weight of this format has, and their types."""
    found = {"codes": np.dtype(np.uint8)}
    if format is not None:
        found |= {name: scales.DTYPES[kind] for name, (kind, _) in format.beside(1).items()}
    return found | ({"books": np.dtype(np.uint8)} if isinstance(format, VectorFormat) else {})


def load(file: ModelFile, config: ModelConfig) -> Weights:
    """Find every weight of a packed file where it is mapped; nothing is copied.

    raises   FileError   an array or statement missing, one too many, sizes that contradict each other or the config,
                         an order or format there is not, floats that are not finite
    """
    reader = Reader(file, config, read_formats(file.path, _table(file, "formats"), AGAIN), set(), aligned(1, np.uint8))
    c = config
    layers = [_layer(reader, f"layers.{index}.") for index in range(c.num_layers)]
    options: dict[str, Any] = {"n": c.vocab_size, "k": c.hidden_size, "may_have_inputs": False}
    head = reader.linear("head", **options)
    is_shared = c.tied and not reader.has("embed")
    table = head.weight if is_shared else reader.linear("embed", **options).weight
    if table.order not in embed.ORDERS:
        raise reader.refuse("embed", f"an embedding in {' or '.join(embed.ORDERS)} order", table.order)
    final_norm = reader.vector("final_norm", c.hidden_size)
    reader.check_all_used()
    return Weights(table, layers, final_norm, head)


def _layer(reader: Reader, prefix: str) -> LayerWeights:
    c = reader.config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    return LayerWeights(
        attn_norm=reader.vector(prefix + "attn_norm", c.hidden_size),
        qkv=_qkv(reader, prefix, [queries, keys, keys]),
        q_norm=reader.vector(prefix + "q_norm", c.head_dim) if c.qk_norm else None,
        k_norm=reader.vector(prefix + "k_norm", c.head_dim) if c.qk_norm else None,
        attn_sub_norm=reader.vector(prefix + "attn_sub_norm", queries) if c.attn_sub_norm else None,
        o=reader.linear(prefix + "o", c.hidden_size, queries, may_have_bias=True),
        ffn_norm=reader.vector(prefix + "ffn_norm", c.hidden_size),
        gate_up=reader.linear(prefix + "gate_up", 2 * round_up(c.ffn_size, ROWS), c.hidden_size),
        ffn_sub_norm=reader.vector(prefix + "ffn_sub_norm", c.ffn_size) if c.ffn_sub_norm else None,
        down=reader.linear(prefix + "down", c.hidden_size, c.ffn_size),
    )


def _qkv(reader: Reader, prefix: str, widths: list[int]) -> tuple[Linear, ...]:
    """One weight, or three in columns side by side."""
    if not reader.has(f"{prefix}qkv.1"):
        widths = [sum(widths)]
    columns = [sum(widths[:part]) for part in range(len(widths))]
    return tuple(
        reader.linear(f"{prefix}qkv.{part}", width, reader.config.hidden_size, column, may_have_bias=True)
        for part, (width, column) in enumerate(zip(widths, columns, strict=True))
    )


@dataclass(frozen=True)
class Reader:
    """Takes arrays out of a packed file and holds them to the header, and the header to the config."""

    file: ModelFile
    config: ModelConfig
    formats: dict[str, Format | VectorFormat]
    used: set[str]
    none: np.ndarray  # stands for the arrays that a format has not

    def has(self, name: str) -> bool:
        """Whether the header states a weight of this name."""
        return name in _table(self.file, "weights")

    def linear(self, name: str, n: int, k: int, column: int = 0, may_have_bias: bool = False,
               may_have_inputs: bool = True) -> Linear:  # fmt: skip
        """A weight [n, k] with what stands beside it, checked: kernels may read it."""
        weight = self._weight(name, n, k)
        needs_bias = self.config.qkv_bias and ".qkv." in name
        has_bias = may_have_bias and (needs_bias or f"{name}.bias" in self.file.tensors)
        bias = self.vector(f"{name}.bias", weight.padded_n) if has_bias else None
        if not may_have_inputs:
            return Linear(weight, bias, column)
        return Linear(weight, bias, column, self._inputs(name, k), self._low_rank(name, n, k))

    def _low_rank(self, name: str, n: int, k: int) -> LowRank | None:
        """The low-rank term of a weight, where it has one: floats of any rank."""
        u, v = (f"{name}.{part}" for part in LOW_RANK)
        if not self.has(u):
            return None
        rank = self._statement(u)[2][1]
        found = LowRank(self._weight(u, n, rank), self._weight(v, rank, k))
        wrong = next((weight for weight in (found.u, found.v) if weight.order != "dense"), None)
        if wrong is not None:
            raise self.refuse(u, "low-rank terms in dense order", wrong.order)
        return found

    def _inputs(self, name: str, k: int) -> Inputs | None:
        """The order and scale of a weight's inputs, where it has them: each input once."""
        if f"{name}.perm" not in self.file.tensors:
            return None
        perm = self.array(f"{name}.perm", np.dtype(np.int32))
        if not np.array_equal(np.sort(perm), np.arange(k)):
            raise self.refuse(f"{name}.perm", f"each of 0 to {k - 1} once", "others")
        return Inputs(perm, self.vector(f"{name}.factors", k))

    def _weight(self, name: str, n: int, k: int) -> TiledWeight:
        order, kind, (stated_n, stated_k, padded_n, padded_k) = self._statement(name)
        if (stated_n, stated_k) != (n, k):
            raise self.refuse(name, f"{n} x {k} by the config", f"{stated_n} x {stated_k}")
        format = self.formats.get(kind)
        arrays = {part: self.array(f"{name}.{part}", dtype).view(np.uint8) for part, dtype in _dtypes(format).items()}
        parts = [arrays.get(part, self.none) for part in stored.ARRAYS]
        dtype = kind if format is None else ""
        weight = TiledWeight(order, format, dtype, n, k, padded_n, padded_k, *parts)
        self._check_scales(name, weight)
        try:
            stored.check(weight)
        except FormatError as error:
            raise FileError(f"{self.file.path}: {name}: {error}") from None
        return weight

    def _check_scales(self, name: str, weight: TiledWeight) -> None:
        """Floats of one byte have bits that stand for no number, and two levels may multiply to none."""
        format, damaged = weight.format, "the file is damaged: " + AGAIN
        if format is None:
            return
        if not scales.is_finite(format.scale_dtype, weight.scales):
            raise self.refuse(name, "finite scales", "nan", damaged)
        if isinstance(format, Format) and format.is_float:
            factors = scales.widen(format.scale_dtype, weight.scales.view(format.dtype))
            if not scales.has_finite_products(format.levels, factors):
                raise self.refuse(f"{name}.scales", "finite products with codes", "inf", damaged)
        for part in [part for part in format.beside(1) if part.startswith("super")]:
            upper = getattr(weight, part)
            upper = upper[: upper.size // 4 * 4].view(scales.DTYPES[format.super_dtype])
            if not scales.has_finite_products(format.scale_dtype, upper):
                raise self.refuse(f"{name}.{part}", "finite products with scales", "inf", damaged)

    def _statement(self, name: str) -> tuple[str, str, list[int]]:
        """What the header says of a weight: an order and a format there are, and numbers for SIZES."""
        stated = _table(self.file, "weights").get(name)
        if not isinstance(stated, dict) or set(stated) != {"order", "format", *SIZES}:
            raise self.refuse(name, f"order, format, {', '.join(SIZES)} in the header", shown(stated))
        order, kind, sizes = stated["order"], stated["format"], [stated[key] for key in SIZES]
        if not all(type(size) is int and 0 < size < MAX_SIZE for size in sizes):
            raise self.refuse(name, f"numbers for {', '.join(SIZES)}", shown(sizes))
        if order not in list(stored.EXTENTS):  # a list, because what is stated may not be hashable
            raise self.refuse(
                name, f"an order of {', '.join(stored.EXTENTS)}", shown(order), f"update lutra, or {AGAIN}"
            )
        if kind not in [*self.formats, *DENSE_DTYPES.values()]:
            raise self.refuse(name, "a format that the header states", shown(kind))
        return order, kind, sizes

    def vector(self, name: str, length: int) -> np.ndarray:
        """f32 [length], finite."""
        values = self.array(name, np.dtype(np.float32))
        if len(values) != length:
            raise self.refuse(name, f"{length} numbers", str(len(values)))
        return values

    def array(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """A mapped array of the type it must have; floats are finite."""
        if name not in self.file.tensors:
            raise self.refuse(name, "an array of this name", "none")
        self.used.add(name)
        values = np.asarray(self.file.tensors[name].read())
        if values.dtype != dtype:
            raise self.refuse(name, f"values of type {dtype}", str(values.dtype))
        if dtype in FLOATS and not _all_finite(values):
            raise self.refuse(name, "finite values", "inf or nan", "the file is damaged: " + AGAIN)
        return values

    def check_all_used(self) -> None:
        """Refuse arrays and statements that this lutra does not compute with: the text would be another."""
        known = self.used | {ROPE, TOKENIZER_JSON, VOCABULARY_JSON}
        stated = {f"{name}.codes" for name in _table(self.file, "weights")}
        left = sorted((set(self.file.tensors) | stated) - known)
        if left:
            raise self.refuse(shown(left[0]), "only arrays of the config's model", f"{len(left)} more")

    def refuse(self, name: str, expected: str, got: str, do: str = AGAIN) -> FileError:
        return refusal(self.file.path, name, expected, got, do)


def _table(file: ModelFile, key: str) -> dict[str, Any]:
    table = file.metadata.get(key)
    if not isinstance(table, dict):
        raise refusal(file.path, key, "an object", shown(table), AGAIN)
    return table


def _all_finite(values: np.ndarray) -> bool:
    """Whether no float is inf or nan, told by the bits: those have the largest exponent, so they sort highest."""
    if not len(values):
        return True
    unsigned = values.view(f"u{values.itemsize}")
    infinity = int(np.array(np.inf, values.dtype).view(unsigned.dtype))
    sign = 1 << (8 * values.itemsize - 1)
    largest_positive = int(values.view(f"i{values.itemsize}").max())
    return largest_positive < infinity and int(unsigned.max()) < (sign | infinity)
