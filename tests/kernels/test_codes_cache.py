"""A KV cache of codes: what is stored, and attention over it, equal to NumPy on every ISA, near to floats."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.kernels import attention, attention_codes, rope, rope_codes
from lutra.kernels.attention_codes import attention_spec
from lutra.kernels.cache import allocate, allocate_queries, keys_of, position_bytes, values_of
from lutra.kernels.codes import CODES, quantize_spec
from lutra.kernels.rope_codes import rope_store_codes, rope_store_spec
from tests.cover import pairs

ISAS = [target.isa for target in targets.available()]
KINDS = [name for name, kind in CODES.items() if not kind.group]
CONTEXT = 350
# heads, kv_heads, head_dim
SHAPES = [(4, 2, 8), (3, 3, 6), (4, 2, 80), (4, 1, 100)]


def tables(head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arange(CONTEXT)[:, None] * 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angle).astype("f4"), np.sin(angle).astype("f4")


def make(kind: str, rows: int, heads: int, kv_heads: int, head_dim: int):
    """Random rows of q | k | v, an empty cache, and room for queries."""
    width = (heads + 2 * kv_heads) * head_dim
    qkv = np.zeros((rows, -(-width // 64) * 64), "f4")
    qkv[:, :width] = np.random.default_rng(head_dim).standard_normal((rows, width))
    return qkv, allocate(kind, kv_heads, CONTEXT, head_dim), allocate_queries(kind, rows, heads, head_dim)


def fill(qkv, cache, queries, position: int, heads: int, isa=None, **options) -> None:
    state = np.array([len(qkv), position, 0, 0], "i8")
    step = rope_codes.bind(qkv, cache, queries, *tables(cache.head_dim), state, heads=heads, isa=isa, **options)
    step.launch.run(0, step.count(len(qkv)))


def attend(cache, queries, rows: int, position: int, heads: int, isa=None, **options) -> np.ndarray:
    """y [rows, heads, D]"""
    y = np.zeros((rows, heads * cache.head_dim), "f4")
    state = np.array([rows, position, 0, 0], "i8")
    for step in attention_codes.bind(queries, cache, y, state, heads=heads, isa=isa, **options):
        step.launch.run(0, step.count(rows))
    return y.reshape(rows, heads, cache.head_dim)


def contents(qkv, cache, queries) -> list[bytes]:
    arrays = qkv, cache.keys, cache.values, cache.key_scales, cache.value_scales, queries.codes, queries.scales
    return [array.tobytes() for array in arrays]


def test_codes_by_hand():
    codes, scale, least = quantize_spec(np.array([-1, 0.5, 2, 6.5], "f4"), "int4")
    assert (codes.tolist(), scale, least) == ([0, 3, 6, 15], 0.5, -1)


def test_one_position_by_hand():
    qkv, cache, queries = make("int4", 1, 1, 1, 4)
    qkv[0, :12] = [3, 1, 0, -6, 0, 15, 30, 3, -7.5, 0, 0, 7.5]
    fill(qkv, cache, queries, 0, 1)  # position 0 turns nothing
    assert queries.codes[0, 0, 0, :4].tolist() == [64, 21, 0, -127]
    assert queries.scales[0, 0, 1] == 64 + 21 - 127
    assert keys_of(cache, 0)[0, 0].tolist() == [0, 8, 15, 2] and cache.key_scales[0, 0, :, 0].tolist() == [2, 0]
    assert values_of(cache, 0)[0, 0].tolist() == [0, 8, 8, 15] and cache.value_scales[0, 0, :, 0].tolist() == [1, -7.5]
    np.testing.assert_allclose(attend(cache, queries, 1, 0, 1)[0, 0], [-7.5, 0.5, 0.5, 7.5], atol=1e-6)


@pytest.mark.parametrize("shape, kind, isa", pairs(SHAPES, KINDS, ISAS))
def test_every_isa_equals_the_specification(shape, kind, isa):
    heads, kv_heads, head_dim = shape
    qkv, cache, queries = make(kind, 70, heads, kv_heads, head_dim)
    norms = 1 + np.random.default_rng(1).standard_normal((2, head_dim)).astype("f4") / 8
    options = {"q_norm": norms[0], "k_norm": norms[1], "eps": 1e-6} if head_dim == 80 else {}
    want = make(kind, 70, heads, kv_heads, head_dim)
    rope_store_spec(*want, *tables(head_dim), 3, heads, **options)
    fill(qkv, cache, queries, 3, heads, isa, **options)
    assert contents(qkv, cache, queries) == contents(*want)
    for position in (0, 62, 70, 250):  # queries of other positions do as well, and so does an empty cache
        y = attend(cache, queries, 3, position, heads, isa)
        assert y.tobytes() == attention_spec(queries, cache, 3, position, heads).tobytes()


@pytest.mark.parametrize("kind, tolerance", [("int8", 0.02), ("int4", 0.25)])
def test_close_to_attention_over_floats(kind, tolerance):
    heads, kv_heads, head_dim = 4, 2, 64
    qkv, cache, queries = make(kind, 140, heads, kv_heads, head_dim)
    floats = qkv.copy(), *rope.allocate_cache(kv_heads, CONTEXT, head_dim, "f32")
    rope.rope_store_spec(*floats, *tables(head_dim), 0, heads)
    fill(qkv, cache, queries, 0, heads)
    q = floats[0][:, : heads * head_dim].reshape(140, heads, head_dim)
    want = attention.attention_spec(q, *floats[1:], 0)
    got = attend(cache, queries, 140, 0, heads)
    assert np.abs(got - want).max() < tolerance
    assert np.abs(got - want).mean() < tolerance / 8


@pytest.mark.parametrize("kind", KINDS)
def test_interpreter_stays_in_bounds_and_agrees(kind):
    heads, kv_heads, head_dim = 2, 1, 20
    qkv, cache, queries = make(kind, 2, heads, kv_heads, head_dim)
    want = make(kind, 2, heads, kv_heads, head_dim)
    rope_store_spec(*want, *tables(head_dim), 63, heads)
    state = np.array([2, 63, 0, 0], "i8")
    step = rope_codes.bind(qkv, cache, queries, *tables(head_dim), state, heads=heads)
    static = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, kind=kind)
    rope_store_codes.interpret(step.launch.args, step.count(2), qk_norm=False, **static)
    assert contents(qkv, cache, queries) == contents(*want)
    y = np.zeros((2, heads * head_dim), "f4")
    for step in attention_codes.bind(queries, cache, y, state, heads=heads, tile=2, sums=4):
        step.launch.interpret(step.count(2))
    assert y.tobytes() == attention_spec(queries, cache, 2, 63, heads).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [30, 220])
def test_tiles_and_chunks_leave_the_bits_alone(kind, position):
    whole = make(kind, 80, 4, 1, 64)
    fill(*whole, position, 4)
    want = attend(*whole[1:], 80, position, 4)
    for tile, sums in ((1, 1), (2, 8), (4, 32)):
        assert attend(*whole[1:], 80, position, 4, tile=tile, sums=sums).tobytes() == want.tobytes()
    qkv, cache, queries = make(kind, 80, 4, 1, 64)
    parts = []
    for begin, end in ((0, 1), (1, 8), (8, 40), (40, 80)):
        fill(qkv[begin:end].copy(), cache, queries, position + begin, 4)
        parts.append(attend(cache, queries, end - begin, position + begin, 4))
    assert np.concatenate(parts).tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_and_equal_numbers_stay_finite(kind):
    qkv, cache, queries = make(kind, 4, 1, 1, 8)
    qkv[0], qkv[1], qkv[2, :24] = 0, 7, [1e30, -1e30, 1e-30, 0, 65504, 1e-7, -1e-7, 0] * 3
    want = qkv.copy(), allocate(kind, 1, CONTEXT, 8), allocate_queries(kind, 4, 1, 8)
    rope_store_spec(*want, *tables(8), 0, 1)
    fill(qkv, cache, queries, 0, 1)
    assert contents(qkv, cache, queries) == contents(*want)
    y = attend(cache, queries, 4, 0, 1)
    assert np.isfinite(y).all() and y[:2, 0].tolist() == [[0] * 8, [7] * 8]
    assert y.tobytes() == attention_spec(queries, cache, 4, 0, 1).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_number_at_all_is_zero(kind, isa):
    """What CPUs make of NaN and infinity as integers differs, so none may get there: neither in queries nor in keys."""
    qkv, cache, queries = make(kind, 3, 2, 1, 8)
    qkv[0, :32], qkv[1, [0, 9, 17, 25]], qkv[2, [3, 20]] = np.nan, [np.inf, -np.inf, np.nan, np.inf], [-np.inf, np.nan]
    qkv[2, 8:16] = -np.nan
    want = qkv.copy(), allocate(kind, 1, CONTEXT, 8), allocate_queries(kind, 3, 2, 8)
    rope_store_spec(*want, *tables(8), 0, 2)
    fill(qkv, cache, queries, 0, 2, isa)
    assert contents(qkv, cache, queries)[1:] == contents(*want)[1:]  # rows keep their NaN, whose sign is nobody's
    assert not queries.codes[0].any() and not keys_of(cache, 0)[0, 0].any()
    y = attend(cache, queries, 3, 0, 2, isa)
    assert np.isfinite(y).all() and y.tobytes() == attention_spec(queries, cache, 3, 0, 2).tobytes()


@pytest.mark.parametrize("kind, num_bytes", [("f32", 1024), ("f16", 512), ("bf16", 512), ("int8", 264), ("int4", 136),
                                             ("kivi4", 140), ("kivi2", 76)])  # fmt: skip
def test_bytes_of_a_position(kind, num_bytes):
    assert position_bytes(kind, 1, 128) == num_bytes
    for head_dim in (8, 20, 128):
        cache = allocate(kind, 3, 128, head_dim)
        assert cache.num_bytes - cache.recent.nbytes == 128 * position_bytes(kind, 3, head_dim)


def test_bad_requests_say_what_was_expected():
    qkv, cache, queries = make("int8", 1, 4, 2, 8)
    with pytest.raises(KernelError, match="f16, bf16, f32, int8, int4, kivi4, kivi2, got 'q8'"):
        allocate("q8", 2, 16, 8)
    with pytest.raises(KernelError, match="multiple of kv_heads"):
        fill(qkv, cache, queries, 0, 3)
    with pytest.raises(KernelError, match="multiple of kv_heads"):
        attend(cache, queries, 1, 0, 3)
    with pytest.raises(KernelError, match="allocate_queries"):
        fill(qkv, cache, allocate_queries("int4", 1, 4, 8), 0, 4)
