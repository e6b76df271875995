"""Rotary embedding and the store into the cache: equal to NumPy on every ISA, for any head size and chunking."""

from itertools import cycle

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.kernels import rope, rotary

ISAS = [target.isa for target in targets.available()]
CONTEXT = 40


def tables(head_dim: int, theta: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arange(CONTEXT)[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angle).astype("f4"), np.sin(angle).astype("f4")


def make(rows: int, heads: int, kv_heads: int, head_dim: int, dtype: str = "f32"):
    """Random rows of q | k | v, and an empty cache."""
    width = (heads + 2 * kv_heads) * head_dim
    qkv = np.zeros((rows, -(-width // 64) * 64), "f4")
    qkv[:, :width] = np.random.default_rng(head_dim).standard_normal((rows, width))
    return qkv, *rope.allocate_cache(kv_heads, CONTEXT, head_dim, dtype)


def run(qkv, keys, values, position: int, isa=None, **options) -> None:
    state = np.array([len(qkv), position, 0, 0], "i8")
    step = rope.bind(qkv, keys, values, *tables(keys.shape[2]), state, isa=isa, **options)
    step.launch.run(0, step.count(len(qkv)))


def test_a_quarter_turn_by_hand():
    x = np.array([[[1, 2, 3, 4]]], "f4")
    turned = rotary.rotate_spec(x, np.zeros((1, 2), "f4"), np.ones((1, 2), "f4"))
    assert turned.tolist() == [[[-3, -4, 1, 2]]]  # (1, 3) -> (-3, 1) and (2, 4) -> (-4, 2)


def test_layout_of_the_cache_by_hand():
    qkv, keys, values = make(1, 1, 1, 4)
    qkv[0, :12] = range(12)
    run(qkv, keys, values, 0, heads=1)  # position 0 turns nothing
    assert qkv[0, :4].tolist() == [0, 1, 2, 3]
    assert keys[0, 0, :, 0].tolist() == [4, 5, 6, 7] and not keys[0, 0, :, 1:].any()
    assert values[0, 0].tolist() == [8, 9, 10, 11] + [0] * 12


@pytest.mark.parametrize("head_dim, dtype", [*zip((6, 8, 64, 80, 100, 128), cycle(("f16", "bf16", "f32")))])
def test_every_head_size_equals_the_specification(head_dim, dtype):
    check(head_dim, dtype, ISAS[0])


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("head_dim, dtype", [(20, "f16"), (6, "bf16"), (16, "f32")])
def test_every_isa_equals_the_specification(head_dim, dtype, isa):
    check(head_dim, dtype, isa)


def check(head_dim: int, dtype: str, isa: str) -> None:
    for normed in (False, True):
        options = {"heads": 4}
        if normed:
            weights = 1 + np.random.default_rng(1).standard_normal((2, head_dim)).astype("f4") / 8
            options |= {"q_norm": weights[0], "k_norm": weights[1], "eps": 1e-6}
        qkv, keys, values = make(3, 4, 2, head_dim, dtype)
        want = qkv.copy(), keys.copy(), values.copy()
        rope.rope_store_spec(*want, *tables(head_dim), 14, **options)  # crosses a block of 16 positions
        run(qkv, keys, values, 14, isa, **options)
        for got, expected in zip((qkv, keys, values), want, strict=True):
            assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("head_dim, dtype", [(6, "f16"), (20, "f32"), (64, "f16")])
def test_interpreter_stays_in_bounds_and_agrees(head_dim, dtype):
    weights = np.ones((2, head_dim), "f4")
    qkv, keys, values = make(2, 2, 1, head_dim, dtype)
    want = qkv.copy(), keys.copy(), values.copy()
    rope.rope_store_spec(*want, *tables(head_dim), 15, 2, weights[0], weights[1], 1e-6)
    state = np.array([2, 15, 0, 0], "i8")
    step = rope.bind(
        qkv, keys, values, *tables(head_dim), state, heads=2, q_norm=weights[0], k_norm=weights[1], eps=1e-6
    )
    static = dict(heads=2, kv_heads=1, head_dim=head_dim, qk_norm=True, cache_dtype=dtype)
    rope.KERNELS[dtype].interpret(step.launch.args, step.count(2), **static)
    for got, expected in zip((qkv, keys, values), want, strict=True):
        assert got.tobytes() == expected.tobytes()


def test_chunks_of_a_prompt_fill_the_same_cache():
    whole = make(20, 4, 2, 64, "f16")
    pieces = tuple(array.copy() for array in whole)
    run(*whole, 3, heads=4)
    for begin, end in ((0, 1), (1, 14), (14, 20)):
        part = pieces[0][begin:end].copy()
        run(part, *pieces[1:], 3 + begin, heads=4)
        pieces[0][begin:end] = part
    for a, b in zip(whole, pieces, strict=True):
        assert a.tobytes() == b.tobytes()


def test_numbers_beyond_f16_stay_finite():
    qkv, keys, values = make(1, 1, 1, 8, "f16")
    qkv[0, 8:24] = [1e6, -1e6, 65519, 1, 0, 0, 0, 0] * 2
    run(qkv, keys, values, 0, heads=1)
    assert keys[0, 0, :4, 0].tolist() == values[0, 0, :4].tolist() == [65504, -65504, 65504, 1]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_a_cache_never_holds_nan_or_infinity(dtype):
    qkv, keys, values = make(2, 1, 1, 8, dtype)
    qkv[:, 8:24] = [np.nan, np.inf, -np.inf, 1, 0, 0, 0, 0] * 2  # warns: the specification multiplies infinity by 0
    want = qkv.copy(), keys.copy(), values.copy()
    rope.rope_store_spec(*want, *tables(8), 0, 1)
    run(qkv, keys, values, 0, heads=1)
    assert keys.tobytes() == want[1].tobytes() and values.tobytes() == want[2].tobytes()
    assert values[0, 0, 0] == 0 and np.isfinite(values.astype("f4")).all() and np.isfinite(keys.astype("f4")).all()


def test_bad_requests_say_what_was_expected():
    qkv, keys, values = make(1, 4, 2, 64)
    with pytest.raises(KernelError, match="multiple of kv_heads"):
        run(qkv, keys, values, 0, heads=3)
    with pytest.raises(KernelError, match="rows of 512"):
        run(qkv, keys, values, 0, heads=6)
    with pytest.raises(KernelError, match="f16, bf16, f32"):
        rope.allocate_cache(1, 16, 64, "f8")
    with pytest.raises(KernelError, match="allocate_cache"):
        run(qkv, keys, values.astype("f2"), 0, heads=4)
    with pytest.raises(KernelError, match="norms of queries and keys of 64 numbers, or neither"):
        run(qkv, keys, values, 0, heads=4, q_norm=np.ones(64, "f4"))
