"""Attention of one token over a long cache: bytes of keys and values a second beside the read roof.

    python bench/long_context.py --positions 16384 [--threads 1] [--heads 20 --kv-heads 5 --head-dim 128] [--kv f16 ...]

Every layer has a cache of its own, as many as make up --megabytes of each kind, so that no cache of the CPU holds them.
Kinds and reading run in alternation, and the best of all rounds counts.  One thread is timed by the time it had a CPU,
more by the clock.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lutra import machine
from lutra.bench.measure import fastest
from lutra.compiler.launch import Program, Workers
from lutra.kernels import kv
from lutra.kernels.buffers import aligned
from lutra.kernels.cache import KINDS, Cache, allocate, position_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--kv-heads", type=int, default=5)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kv", nargs="+", default=["f16", "int8", "int4", "kivi4"], choices=KINDS)
    o = parser.parse_args()
    workers, clock = Workers(o.threads), time.thread_time if o.threads == 1 else time.perf_counter
    programs, sizes = {}, {}
    for kind in o.kv:
        size = o.positions * position_bytes(kind, o.kv_heads, o.head_dim)
        layers = max(1, o.megabytes * 1_000_000 // size)
        programs[kind] = attention(kind, layers, o.positions, o.heads, o.kv_heads, o.head_dim)
        sizes[kind] = layers * size
    programs["read"] = fastest(machine.read_programs(o.megabytes * 1_000_000), workers)
    sizes["read"] = machine.bytes_read(programs["read"])
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(o.rounds):
        for name, program in programs.items():
            started = clock()
            program.run(workers, 1)
            best[name] = min(best[name], clock() - started)
    roof = sizes["read"] / best["read"]
    print(f"{o.positions} positions, {o.heads} heads over {o.kv_heads} of {o.head_dim}, {o.threads} threads; "
          f"reading {roof / 1e9:.1f} GB/s")  # fmt: skip
    print("| kind | bytes of a position and head | GB/s | of the roof | us of a layer |\n|---|--:|--:|--:|--:|")
    for kind in o.kv:
        rate, per = sizes[kind] / best[kind], position_bytes(kind, 1, o.head_dim)
        layer_us = best[kind] * 1e6 * o.positions * per * o.kv_heads / sizes[kind]
        print(f"| `{kind}` | {per} | {rate / 1e9:.1f} | {rate / roof:.0%} | {layer_us:.0f} |")


def attention(kind: str, layers: int, positions: int, heads: int, kv_heads: int, head_dim: int) -> Program:
    """Attention of the row at the last position, over full caches of random numbers, layer after layer."""
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((1, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
    y, state = aligned((1, heads * head_dim), np.float32), np.array([1, positions - 1, 0, 0], np.int64)
    angles, queries = np.ones((positions, head_dim // 2), np.float32), kv.queries_for(kind, 1, heads, head_dim)
    caches = [allocate(kind, kv_heads, positions, head_dim) for _ in range(layers)]
    for cache in caches:
        _fill(cache, rng)
    for step in kv.bind_store(qkv, caches[0], queries, angles, angles, state, heads=heads):
        step.launch.run(0, step.count(1))
    room = kv.room_for(caches[0], 1, heads)
    return Program([step for cache in caches
                    for step in kv.bind_attention(qkv, cache, queries, y, state, heads=heads, room=room)])  # fmt: skip


def _fill(cache: Cache, rng: np.random.Generator) -> None:
    """Any codes or floats, and scales near 1: what is computed takes the same time."""
    for array in (cache.keys, cache.values, cache.key_scales, cache.value_scales, cache.recent):
        if array.dtype == np.uint8:
            array[:] = rng.integers(0, 256, array.shape[1:], np.uint8)
        elif array.size:
            array[:] = rng.standard_normal(array.shape[1:]).astype(np.float32)


if __name__ == "__main__":
    main()
