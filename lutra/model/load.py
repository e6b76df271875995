"""From a path to a model that runs: file, config, tokenizer, and weights in tile order, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutra.compiler.launch import Workers
from lutra.errors import CapacityError, FileError, RequestError
from lutra.files import open_model
from lutra.files.door import shown
from lutra.files.model_file import ModelFile
from lutra.formats.format import Format
from lutra.formats.sidecars import Adapted
from lutra.formats.vectors import VectorWeight, find_other
from lutra.kernels.cache import DEFAULT_KIND, check_kind
from lutra.model import packed
from lutra.model.config import ModelConfig, config_from
from lutra.model.head import recode
from lutra.model.tokenizer import TOKENIZER_JSON, VOCABULARY_JSON, Tokenizer
from lutra.model.transformer import Transformer
from lutra.model.weights import LayerWeights, Matrix, Weights, gated, side_by_side, table_and_head, tile
from lutra.quantize.ternary import absmean, find_ternary

DEFAULT_KV = DEFAULT_KIND
DEFAULT_CONTEXT = 4096  # tokens, where the model allows as many

APART = {"rope_freqs", TOKENIZER_JSON, VOCABULARY_JSON}  # read apart from the weights
RECOMPUTED = (".rotary_emb.inv_freq",)  # frequencies in old checkpoints: they follow from theta

Progress = Callable[[str, int, int], None]  # progress(label, done, total)


@dataclass(frozen=True)
class Model:
    """Everything that comes out of a model file; head: the format its head was re-coded to, None for as stored."""

    file: ModelFile
    config: ModelConfig
    tokenizer: Tokenizer
    weights: Weights
    transformer: Transformer
    head: Format | None = None


def load_model(
    path: str | Path,
    threads: int,
    context: int | None,
    progress: Progress | None,
    kv: str = DEFAULT_KV,
    head: str | None = None,
    prefill_threads: int | None = None,
) -> Model:
    """Open a model and make it ready to run; LLM.load says what the arguments mean and what it raises."""
    file = open_model(path)
    config = config_from(file)
    if context is not None and not 1 <= context <= config.max_context:
        raise CapacityError(f"expected a context of 1 to {config.max_context} tokens, got {context}; change --ctx")
    check_kind(kv)
    format = find_head(file, head)
    tokenizer = Tokenizer.from_file(file)
    if file.kind == "packed":
        weights = packed.load(file, config)
    else:
        weights = load_weights(file, config, progress or _silent, head=format)
    factors = file.tensors["rope_freqs"].read() if "rope_freqs" in file.tensors else None
    assert factors is None or isinstance(factors, np.ndarray)
    room = context or min(config.max_context, DEFAULT_CONTEXT)
    workers = Workers(threads)
    others = None if prefill_threads in (None, threads) else Workers(prefill_threads)
    transformer = Transformer(config, weights, workers, room, factors=factors, kv=kv, prefill_workers=others)
    return Model(file, config, tokenizer, weights, transformer, format)


def find_head(file: ModelFile, head: str | None) -> Format | None:
    """The format that the head is to be re-coded to, None for as stored.

    Raises FormatError for a name no format has, RequestError for a packed file, whose weights are used in place.
    """
    if head is not None and file.kind == "packed":
        raise RequestError(f"expected a model to re-code, got {file.path}, which is packed; pack it again with --head")
    return None if head is None else find_other(head, "for the head")


def _silent(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Reader:
    """Reads tensors by lutra's names and checks them against the config.

    order   kernel family to tile for where it takes the format, None for the usual
    """

    file: ModelFile
    config: ModelConfig
    used: set[str]
    order: str | None = None

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """A weight [rows, columns]; masters of models trained with int8 activations become ternary."""
        value = self._read(name, (rows, columns))
        if isinstance(value, (Adapted, VectorWeight)) and name in ("embed", "head"):
            return value.dequantize()  # rows are taken out of the one, the other meets only some rows
        is_master = self.config.family.quantize_activations and name not in ("embed", "head")
        if not isinstance(value, np.ndarray) or not is_master:
            return value
        dense = np.asarray(value, np.float32)
        return find_ternary(dense) or absmean(dense)  # some files hold the ternary values already, times their scale

    def vector(self, name: str, length: int) -> np.ndarray:
        """A norm weight or bias as f32 [length]."""
        value = self._read(name, (length,))
        return np.ascontiguousarray(value, np.float32)

    def optional(self, name: str, length: int, is_wanted: bool = True) -> np.ndarray | None:
        """A vector that this family may have: required when `is_wanted`, read when present."""
        return self.vector(name, length) if is_wanted or name in self.file.tensors else None

    def check_all_used(self) -> None:
        """Refuse a model with a bias, norm or layer that this family does not compute: its text would be wrong."""
        tied = {"head"} if self.config.tied else set()
        left = [self.file.tensors[name].source_name for name in self.file.tensors.keys() - self.used - tied - APART]
        left += [name for name in self.file.unknown if not name.endswith(RECOMPUTED)]
        if left:
            names = ", ".join(map(shown, sorted(left)[:3]))
            raise FileError(
                f"{self.file.path}: expected the tensors of a {self.config.architecture} model, got {len(left)} more "
                f"({names}); lutra does not compute them, so convert the model or use another"
            )

    def _read(self, name: str, shape: tuple[int, ...]) -> Matrix:
        if name not in self.file.tensors:
            raise FileError(f"{self.file.path}: expected a tensor for {name}, found none; the file is incomplete")
        self.used.add(name)
        tensor = self.file.tensors[name]
        if tensor.shape != shape:
            raise FileError(
                f"{self.file.path}: {tensor.source_name} should have shape {shape} by the config, got {tensor.shape}; "
                "config and weights do not belong together"
            )
        return tensor.read()


def load_weights(
    file: ModelFile,
    config: ModelConfig,
    progress: Progress = _silent,
    order: str | None = None,
    head: Format | None = None,
) -> Weights:
    """Read and tile every weight of the model; order as for Reader.

    head   the format to round the head to, None for as stored.  The embedding stays as stored, tied or not: its rows
           are read one at a time, so fewer bits would cost accuracy and save no time
    Raises FileError for a missing tensor, a shape that contradicts the config, or values without meaning.
    """
    reader = Reader(file, config, set(), order)
    total = config.num_layers + 2
    table = reader.matrix("embed", config.vocab_size, config.hidden_size)
    last = None if config.tied else reader.matrix("head", config.vocab_size, config.hidden_size)
    if head is not None:
        last = recode(table if last is None else last, head)
    rows, final = table_and_head(table, last, order)
    progress("embedding and head", 1, total)
    layers = []
    for index in range(config.num_layers):
        layers.append(layer_weights(reader, f"layers.{index}."))
        progress(f"layer {index + 1} of {config.num_layers}", index + 2, total)
    final_norm = reader.vector("final_norm", config.hidden_size)
    progress("final norm", total, total)
    reader.check_all_used()
    return Weights(rows, layers, final_norm, final)


def layer_weights(reader: Reader, prefix: str) -> LayerWeights:
    """Read and tile the layer whose tensors' names begin with `prefix`; raises FileError as load_weights does."""
    c = reader.config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    widths = {"q": queries, "k": keys, "v": keys}
    qkv = [reader.matrix(prefix + name, width, c.hidden_size) for name, width in widths.items()]
    biases = [reader.optional(f"{prefix}{name}.bias", width, c.qkv_bias) for name, width in widths.items()]
    o_bias = reader.optional(prefix + "o.bias", c.hidden_size, False)
    gate, up = (reader.matrix(prefix + name, c.ffn_size, c.hidden_size) for name in ("gate", "up"))
    return LayerWeights(
        attn_norm=reader.vector(prefix + "attn_norm", c.hidden_size),
        qkv=side_by_side(qkv, biases, reader.order),
        q_norm=reader.optional(prefix + "q_norm", c.head_dim, c.qk_norm),
        k_norm=reader.optional(prefix + "k_norm", c.head_dim, c.qk_norm),
        attn_sub_norm=reader.optional(prefix + "attn_sub_norm", queries, c.attn_sub_norm),
        o=tile(reader.matrix(prefix + "o", c.hidden_size, queries), o_bias, order=reader.order),
        ffn_norm=reader.vector(prefix + "ffn_norm", c.hidden_size),
        gate_up=gated(gate, up, reader.order),
        ffn_sub_norm=reader.optional(prefix + "ffn_sub_norm", c.ffn_size, c.ffn_sub_norm),
        down=tile(reader.matrix(prefix + "down", c.hidden_size, c.ffn_size), order=reader.order),
    )
