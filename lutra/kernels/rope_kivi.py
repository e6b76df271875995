"""The store into a KIVI cache: values as codes, keys as floats until their group is whole, then as codes by channel.

Two launches: rows are stored, then the groups of positions that end among them are sealed.  Layouts: cache.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    concat,
    const,
    convert,
    f16,
    f32,
    i64,
    load,
    loop,
    shuffle,
    store,
    u8,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.kernels.cache import BLOCK, Cache
from lutra.kernels.codes import CODES, F16_LIMIT, Codes, joined, joined_spec, quantize_spec, quantized
from lutra.kernels.rope import held_spec, padded, store_key
from lutra.kernels.rope_codes import store_value, store_value_spec
from lutra.kernels.rotary import bind_rows, rotate_row, rotated_spec, row_of


def rope_store_spec(
    qkv: np.ndarray, cache: Cache, cos: np.ndarray, sin: np.ndarray, position: int, heads: int, *norms: Any,
    **options: Any,
) -> None:  # fmt: skip
    """Rotate the queries of qkv [M, stride] in place; write keys and values of M positions into the cache.

    Arguments as for rope.rope_store_spec.
    """
    rows = np.arange(position, position + len(qkv))
    q, k, v = rotated_spec(qkv, heads, cache.kv_heads, cache.head_dim, cos, sin, rows, *norms, **options)
    qkv[:, : heads * cache.head_dim] = q.reshape(len(qkv), -1)
    group, recent_blocks = CODES[cache.kind].group, cache.recent.shape[1]
    for row, at in enumerate(map(int, rows)):
        cache.recent[:, at // BLOCK % recent_blocks, :, at % BLOCK] = held_spec(k[row], F16_LIMIT)
        for kv in range(cache.kv_heads):
            store_value_spec(v[row, kv], cache, kv, at)
        if (at + 1) % group == 0:
            seal_spec(cache, at // group)


def recent_of(cache: Cache, group: int) -> np.ndarray:
    """Keys of a group that are still floats: f32 [kv_heads, D, positions]."""
    blocks = CODES[cache.kind].group // BLOCK
    first = group % cache.recent_groups * blocks
    keys = cache.recent[:, first : first + blocks].astype(np.float32)  # [kv_heads, blocks, D, 16]
    return keys.transpose(0, 2, 1, 3).reshape(cache.kv_heads, cache.head_dim, -1)


def seal_spec(cache: Cache, group: int) -> None:
    """Write the codes of a group whose keys stand in `recent`."""
    codes = CODES[cache.kind]
    found, scale, least = quantize_spec(recent_of(cache, group), cache.kind)  # [kv_heads, D, positions], [kv_heads, D]
    cache.key_scales[:, group, 0, : cache.head_dim] = scale
    cache.key_scales[:, group, 1, : cache.head_dim] = least
    blocks, words = codes.group // BLOCK, cache.keys.shape[2]
    every = np.zeros((cache.kv_heads, words * codes.per_byte * 4, blocks, BLOCK), np.uint8)
    every[:, : cache.head_dim] = found.reshape(*found.shape[:2], blocks, BLOCK)
    every = every.reshape(-1, words, codes.per_byte, 4, blocks, BLOCK).transpose(0, 4, 1, 2, 5, 3)
    held = joined_spec(every.reshape(-1, codes.per_byte, BLOCK * 4), codes)
    cache.keys[:, group * blocks : (group + 1) * blocks] = held.reshape(-1, blocks, words, BLOCK, 4)


# ---- the kernels ----------------------------------------------------------------------------------------------------


@kernel
def rope_store_kivi(
    qkv: Pointer[f32],
    cos: Pointer[f32],
    sin: Pointer[f32],
    q_norm: Pointer[f32],
    k_norm: Pointer[f32],
    recent: Pointer[f16],
    values: Pointer[u8],
    value_scales: Pointer[f16],
    state: Pointer[i64],
    stride: i64,
    blocks: i64,
    recent_blocks: i64,
    eps: f32,
    task: i64,
    *,
    heads,
    kv_heads,
    head_dim,
    qk_norm,
    kind,
):
    """Rotate one row's queries of one key/value head, and store that head's key and value."""
    row = row_of(state, task, stride, heads, kv_heads, head_dim)
    norms = (q_norm, k_norm) if qk_norm else (None, None)
    key = rotate_row(qkv, row, cos, sin, *norms, heads // kv_heads, head_dim, eps)
    block = row.kv * recent_blocks + row.position // BLOCK % recent_blocks
    store_key(key, recent, block, row.position % BLOCK, head_dim)
    store_value(qkv, row, values, value_scales, blocks, CODES[kind], head_dim)


@kernel
def seal_keys(
    recent: Pointer[f16],
    keys: Pointer[u8],
    key_scales: Pointer[f16],
    state: Pointer[i64],
    blocks: i64,
    recent_blocks: i64,
    task: i64,
    *,
    kv_heads,
    head_dim,
    kind,
):
    """Codes of one group of positions that ends in this step, for one key/value head."""
    codes, step = CODES[kind], CODES[kind].group // BLOCK
    first, end = load(state, 1), load(state, 1) + load(state, 0)
    group, kv = first // codes.group + task // kv_heads, task % kv_heads
    with when(group < end // codes.group):
        source = (kv * recent_blocks + group * step % recent_blocks) * (head_dim * BLOCK)
        words = codes.key_columns(head_dim) // (4 * codes.per_byte)
        target = (kv * blocks + group * step) * (words * 4 * BLOCK)
        scales = (kv * (blocks // step) + group) * (2 * padded(head_dim))
        channels = 4 * codes.per_byte

        def seal(word: Value | int, count: int) -> None:
            """A word of each position: the codes of so many channels."""
            found = []
            for i in range(count):
                d = word * channels + i
                at = [source + b * (head_dim * BLOCK) + d * BLOCK for b in range(step)]
                parts = [convert(load(recent, place, BLOCK), f32) for place in at]
                part, *pair = quantized(parts, codes, codes.group)
                found.append(part)
                for j, number in enumerate(pair):
                    store(key_scales, scales + j * padded(head_dim) + d, number)
            found += [[const(0, u8, BLOCK)] * step] * (channels - count)
            for b in range(step):
                place = target + b * (words * 4 * BLOCK) + word * (4 * BLOCK)
                store(keys, place, _word([part[b] for part in found], codes))

        whole = head_dim // channels
        for word in loop(0, whole):
            seal(word, channels)
        if head_dim % channels:
            seal(whole, head_dim % channels)


def _word(channels: list[Value], kind: Codes) -> Value:
    """u8x64: of each of 16 positions the 4 bytes that hold its codes of these channels."""
    a, b, c, d = (joined(channels[i::4], kind) for i in range(4))
    return shuffle(concat(a, b), concat(c, d), [byte * BLOCK + lane for lane in range(BLOCK) for byte in range(4)])


def bind(
    qkv: np.ndarray, cache: Cache, cos: np.ndarray, sin: np.ndarray, state: np.ndarray, *, isa: str | None = None,
    **options: Any,
) -> list[Step]:  # fmt: skip
    """Rotate, store rows 0 .. state[0] - 1 at positions state[1] + row, and seal; arguments as for rope.bind.

    Raises KernelError when shapes disagree, and for more rows than the cache was allocated for.
    """
    group, groups = CODES[cache.kind].group, cache.recent_groups
    if -(-(len(qkv) - 1) // group) + 1 > groups:
        raise KernelError(
            f"expected steps of at most {(groups - 1) * group + 1} rows, got {len(qkv)}; allocate the cache for more"
        )
    args, static = bind_rows(qkv, cos, sin, state, cache.kv_heads, cache.head_dim, **options)
    both = dict(recent=cache.recent, state=state, blocks=cache.keys.shape[1], recent_blocks=cache.recent.shape[1])
    args |= both | dict(values=cache.values, value_scales=cache.value_scales)
    rows = Step(rope_store_kivi.bind(args, isa, **static, kind=cache.kind), cache.kv_heads, 1)
    args = both | dict(keys=cache.keys, key_scales=cache.key_scales)
    sizes = dict(kv_heads=cache.kv_heads, head_dim=cache.head_dim, kind=cache.kind)
    return [rows, Step(seal_keys.bind(args, isa, **sizes), cache.kv_heads, group)]
