"""A model in words, for `lutra inspect model`."""

from __future__ import annotations

from collections.abc import Iterator

from lutra.model.load import Model
from lutra.model.packed import linears

_COLUMNS = ("tensor", "stored as", "shape", "runs as")


def describe(model: Model) -> str:
    """Sizes of the decoder, bytes a decode step reads, and a line per tensor."""
    rows = [_COLUMNS, *(_packed_rows(model) if model.file.kind == "packed" else _tensor_rows(model))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    unknown = [f"not used: {name}" for name in model.file.unknown]
    return "\n".join([*_summary(model), "", *table, *unknown])


def _tensor_rows(model: Model) -> Iterator[tuple[str, ...]]:
    source = "embed" if model.config.tied else "head"
    for tensor in model.file.tensors.values():
        sizes, recoded = " x ".join(map(str, tensor.shape)), tensor.recoded
        if model.head and tensor.name == source:
            runs = f"re-coded to {model.head.name} (rounded)"
            if source == "embed":
                yield "head", tensor.stored_type, sizes, runs
            else:
                recoded = runs
        yield tensor.name, tensor.stored_type, sizes, recoded


def _packed_rows(model: Model) -> Iterator[tuple[str, ...]]:
    for name, linear in linears(model.weights):
        weight = linear.weight
        kind = weight.dtype if weight.format is None else weight.format.name
        beside = f", rank {linear.low_rank.v.n} beside" if linear.low_rank else ""
        yield name, f"{kind}, {weight.order} order{beside}", f"{weight.n} x {weight.k}", "used in place"


def _summary(model: Model) -> list[str]:
    file, config, transformer = model.file, model.config, model.transformer
    position_bytes = transformer.buffers.position_bytes
    heads = f"{config.num_heads} heads of {config.head_dim}, {config.num_kv_heads} of keys and values"
    return [
        f"{file.path}  ({config.architecture}, {file.kind})",
        f"hidden {config.hidden_size}, ffn {config.ffn_size}, {config.num_layers} layers, {heads}, {config.activation}",
        f"vocabulary {config.vocab_size}, context {config.max_context}, head {'tied' if config.tied else 'of its own'}",
        f"a decoded token reads {model.weights.bytes_per_token / 1e6:.1f} MB of weights",
        f"a token of context takes {position_bytes / 1e3:.2f} kB of keys and values in {transformer.kv}, "
        f"{transformer.context} tokens {transformer.context * position_bytes / 1e6:.1f} MB",
    ]
