"""Write a small float Llama GGUF again as a wider one that computes the same function, rows a multiple of 256.

    python bench/widen.py stories260K.gguf wide.gguf

Block types of 256 weights cannot hold the rows of a tiny model; this makes one that they can hold, and whose text is
still the tiny model's.  In exact arithmetic nothing changes:

* The residual stream r becomes 2^s Q r, Q with orthonormal columns, so a norm over four times the width gives the same;
  norm weights move into the matrices behind them.
* Every head is copied, and the columns of the output projection that belong to it are split: the copies' shares differ,
  and add up to the original's.  Neurons of the feed-forward layer are copied in the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

BLOCK = 256
SPREAD = 0.5  # of the shares of copies, beside the size of the shares
SIZES = ("embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
INPUTS = {
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm",
}  # fmt: skip


def metadata(reader: GGUFReader) -> dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]:
    """Name → value, its type, and the type of its elements where it is an array."""
    found = {}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            element = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            found[name] = (field.contents(), field.types[0], element)
    return found


def split(rng: np.random.Generator, columns: np.ndarray, copies: list[np.ndarray]) -> np.ndarray:
    """Give each original column's values to its copies: shares that differ and add up.

    columns   float64 [N, K]
    copies    for every original column, the new columns that stand for it
    returns   float64 [N, sum of copies]
    """
    wide = np.zeros((len(columns), sum(map(len, copies))))
    for column, places in zip(columns.T, copies, strict=True):
        noise = rng.standard_normal((len(column), len(places))) * SPREAD * np.abs(column).mean()
        noise -= noise.mean(1, keepdims=True)
        wide[:, places] = (column[:, None] + noise) / len(places) if len(places) > 1 else column[:, None]
    return wide


def widen(reader: GGUFReader, seed: int = 0) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Return the new sizes (SIZES, without the architecture's prefix) and the new tensors, f32 [N, K] or [N]."""
    rng = np.random.default_rng(seed)
    old = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
    hidden, ffn, heads, kv_heads = (int(reader.fields[f"llama.{name}"].contents()) for name in SIZES)
    times = -(-BLOCK // hidden)
    width, wide, wide_ffn, head_dim = hidden * times, times * hidden, -(-ffn // BLOCK) * BLOCK, hidden // heads
    rotation = np.linalg.qr(rng.standard_normal((wide, hidden)))[0] * np.sqrt(wide / hidden)  # [wide, hidden]
    back = rotation.T * hidden / wide                                                       # [hidden, wide]

    group = heads // kv_heads
    copies_kv = [list(range(kv * times, (kv + 1) * times)) for kv in range(kv_heads)]
    copies = [[group * kv + head % group for kv in copies_kv[head // group]] for head in range(heads)]
    order = np.argsort([place for places in copies for place in places], kind="stable") // times
    rows_q = (order[:, None] * head_dim + np.arange(head_dim)).ravel()
    rows_kv = (np.repeat(np.arange(kv_heads), times)[:, None] * head_dim + np.arange(head_dim)).ravel()
    columns_o = [np.array(copies[head]) * head_dim + at for head in range(heads) for at in range(head_dim)]
    extra = np.arange(ffn, wide_ffn)
    neurons = np.concatenate([np.arange(ffn), (extra - ffn) % ffn])
    columns_down = [np.flatnonzero(neurons == neuron) for neuron in range(ffn)]

    head = old.get("output.weight", old["token_embd.weight"])
    new = {
        "token_embd.weight": old["token_embd.weight"] @ rotation.T,
        "output.weight": head * old["output_norm.weight"] @ back,
        "output_norm.weight": np.ones(wide),
    }
    rows = {"attn_q": rows_q, "attn_k": rows_kv, "attn_v": rows_kv, "ffn_gate": neurons, "ffn_up": neurons}
    for layer in range(int(reader.fields["llama.block_count"].contents())):
        blk = f"blk.{layer}."
        for name, norm in INPUTS.items():
            new[f"{blk}{name}.weight"] = (old[f"{blk}{name}.weight"] * old[f"{blk}{norm}.weight"] @ back)[rows[name]]
        for norm in ("attn_norm", "ffn_norm"):
            new[f"{blk}{norm}.weight"] = np.ones(wide)
        new[f"{blk}attn_output.weight"] = split(rng, rotation @ old[f"{blk}attn_output.weight"], columns_o)
        new[f"{blk}ffn_down.weight"] = split(rng, rotation @ old[f"{blk}ffn_down.weight"], columns_down)
    sizes = dict(zip(SIZES, (width, wide_ffn, heads * times, kv_heads * times), strict=True))
    return sizes, {name: np.ascontiguousarray(value, np.float32) for name, value in new.items()}


def write(source: Path, target: Path) -> None:
    """Write the wider model with everything else the file says."""
    reader = GGUFReader(source)
    sizes, tensors = widen(reader)
    writer = GGUFWriter(target, "llama")
    for name, (value, kind, element) in metadata(reader).items():
        if name != "general.architecture":
            writer.add_key_value(name, sizes.get(name.removeprefix("llama."), value), kind, element)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path)
    options.add_argument("target", type=Path)
    chosen = options.parse_args()
    write(chosen.source, chosen.target)
