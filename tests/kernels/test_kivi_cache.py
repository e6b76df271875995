"""A KIVI cache: what is stored, and attention over it, equal to NumPy on every ISA, the same however text is cut."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.kernels import attention, attention_kivi, rope, rope_kivi
from lutra.kernels.attention_kivi import attention_spec
from lutra.kernels.cache import allocate, keys_of, resumable, values_of
from lutra.kernels.codes import CODES
from tests.cover import pairs
from tests.kernels.test_codes_cache import CONTEXT, SHAPES, tables

ISAS = [target.isa for target in targets.available()]
KIVI = [name for name, kind in CODES.items() if kind.group]


def make(kind: str, rows: int, heads: int, kv_heads: int, head_dim: int):
    """Random rows of q | k | v, and an empty cache."""
    width = (heads + 2 * kv_heads) * head_dim
    qkv = np.zeros((rows, -(-width // 64) * 64), "f4")
    qkv[:, :width] = np.random.default_rng(head_dim).standard_normal((rows, width))
    return qkv, allocate(kind, kv_heads, CONTEXT, head_dim, rows)


def fill(qkv, cache, position: int, heads: int, isa=None, **options) -> None:
    state = np.array([len(qkv), position, 0, 0], "i8")
    for step in rope_kivi.bind(qkv, cache, *tables(cache.head_dim), state, heads=heads, isa=isa, **options):
        step.launch.run(0, step.count(len(qkv)))


def attend(qkv, cache, position: int, heads: int, isa=None, **options) -> np.ndarray:
    """y [rows, heads, D]"""
    y = np.zeros((len(qkv), heads * cache.head_dim), "f4")
    state = np.array([len(qkv), position, 0, 0], "i8")
    for step in attention_kivi.bind(qkv, cache, y, state, heads=heads, isa=isa, **options):
        step.launch.run(0, step.count(len(qkv)))
    return y.reshape(len(qkv), heads, cache.head_dim)


def queries(qkv, heads: int, head_dim: int) -> np.ndarray:
    return qkv[:, : heads * head_dim].reshape(len(qkv), heads, head_dim)


def contents(qkv, cache) -> list[bytes]:
    arrays = qkv, cache.keys, cache.values, cache.key_scales, cache.value_scales, cache.recent
    return [array.tobytes() for array in arrays]


def test_a_group_by_hand():
    """Channel 0 counts 0 .. 63, channel 1 is 3 but for one 18, channel 2 is 0, channel 3 falls from 15 to -48."""
    qkv, cache = make("kivi4", 64, 1, 1, 4)
    qkv[:], at = 0, np.arange(64)
    qkv[:, 4], qkv[:, 5], qkv[:, 7] = at, 3, 15 - at
    qkv[9, 5] = 18
    state, straight = np.array([64, 0, 0, 0], "i8"), (np.ones((CONTEXT, 2), "f4"), np.zeros((CONTEXT, 2), "f4"))
    for step in rope_kivi.bind(qkv, cache, *straight, state, heads=1):
        step.launch.run(0, step.count(64))
    scales = cache.key_scales[0, 0, :, :4].astype("f4")
    np.testing.assert_allclose(scales, [[63 / 15, 1, 0, 63 / 15], [0, 3, 0, -48]], rtol=1e-3)
    codes = keys_of(cache, 0)[0]
    assert codes[:, 0].tolist() == np.rint(at * 15 / 63).tolist() == codes[::-1, 3].tolist()
    assert codes[:, 1].tolist() == [15 if i == 9 else 0 for i in at] and not codes[:, 2].any()


@pytest.mark.parametrize("shape, kind, isa", pairs(SHAPES, KIVI, ISAS))
def test_every_isa_equals_the_specification(shape, kind, isa):
    heads, kv_heads, head_dim = shape
    norms = 1 + np.random.default_rng(1).standard_normal((2, head_dim)).astype("f4") / 8
    options = {"q_norm": norms[0], "k_norm": norms[1], "eps": 1e-6} if head_dim == 80 else {}
    qkv, cache = make(kind, 70, heads, kv_heads, head_dim)
    want = make(kind, 70, heads, kv_heads, head_dim)
    rope_kivi.rope_store_spec(*want, *tables(head_dim), 3, heads, **options)
    fill(qkv, cache, 3, heads, isa, **options)
    assert contents(qkv, cache) == contents(*want)
    for position in (0, 62, 70, 250):  # queries of other positions do as well, and so does an empty cache
        y = attend(qkv[:3], cache, position, heads, isa)
        assert y.tobytes() == attention_spec(queries(qkv[:3], heads, head_dim), cache, position).tobytes()


@pytest.mark.parametrize("kind, tolerance", [("kivi4", 0.25), ("kivi2", 1.2)])
def test_close_to_attention_over_floats(kind, tolerance):
    heads, kv_heads, head_dim = 4, 2, 64
    qkv, cache = make(kind, 140, heads, kv_heads, head_dim)
    floats = qkv.copy(), *rope.allocate_cache(kv_heads, CONTEXT, head_dim, "f32")
    rope.rope_store_spec(*floats, *tables(head_dim), 0, heads)
    fill(qkv, cache, 0, heads)
    want = attention.attention_spec(queries(floats[0], heads, head_dim), *floats[1:], 0)
    error = np.abs(attend(qkv, cache, 0, heads) - want)
    assert error.max() < tolerance and error.mean() < tolerance / 8


def test_channels_of_very_different_size_keep_their_codes():
    """What groups by channel are for: a channel 100 times the others costs those nothing."""
    qkv, cache = make("kivi4", 65, 1, 1, 16)
    qkv[:, 16] *= 100
    straight = np.ones((CONTEXT, 8), "f4"), np.zeros((CONTEXT, 8), "f4")
    for step in rope_kivi.bind(qkv, cache, *straight, np.array([65, 0, 0, 0], "i8"), heads=1):
        step.launch.run(0, step.count(65))
    scale, least = cache.key_scales[0, 0].astype("f4")
    error = np.abs(keys_of(cache, 0)[0] * scale + least - qkv[:64, 16:32])
    assert error[:, 1:].max() < 0.25 < error[:, 0].max()


@pytest.mark.parametrize("kind", KIVI)
def test_interpreter_stays_in_bounds_and_agrees(kind):
    heads, kv_heads, head_dim, position = 2, 1, 20, 61
    qkv, cache = make(kind, 4, heads, kv_heads, head_dim)
    want = make(kind, 4, heads, kv_heads, head_dim)
    rope_kivi.rope_store_spec(*want, *tables(head_dim), position, heads)
    state = np.array([4, position, 0, 0], "i8")
    y = np.zeros((4, heads * head_dim), "f4")
    for step in rope_kivi.bind(qkv, cache, *tables(head_dim), state, heads=heads):
        step.launch.interpret(step.count(4))
    assert contents(qkv, cache) == contents(*want)
    for step in attention_kivi.bind(qkv, cache, y, state, heads=heads, tile=2, sums=4):
        step.launch.interpret(step.count(4))
    assert y.tobytes() == attention_spec(queries(qkv, heads, head_dim), cache, position).tobytes()


@pytest.mark.parametrize("kind", KIVI)
@pytest.mark.parametrize("cuts", [[128], [1] * 128, [63, 1, 1, 63], [40, 41, 47], [64, 64]], ids=str)
def test_tiles_and_cuts_leave_the_bits_alone(kind, cuts):
    """Rows see keys of their own group as floats and the others as codes, whatever step stored them."""
    qkv, cache = make(kind, 128, 4, 1, 32)
    whole = qkv.copy(), allocate(kind, 1, CONTEXT, 32, 128)
    fill(*whole, 0, 4)
    want = attend(*whole, 0, 4)
    for tile, sums in ((1, 1), (2, 8), (4, 32)):
        assert attend(*whole, 0, 4, tile=tile, sums=sums).tobytes() == want.tobytes()
    begin, cache = 0, allocate(kind, 1, CONTEXT, 32, max(cuts))
    for cut in cuts:
        part = qkv[begin : begin + cut].copy()
        fill(part, cache, begin, 4)
        assert attend(part, cache, begin, 4).tobytes() == want[begin : begin + cut].tobytes()
        begin += cut


def test_another_text_goes_on_where_a_group_begins():
    qkv, cache = make("kivi4", 40, 2, 1, 16)
    for begin in range(0, 240, 40):
        fill(qkv.copy(), cache, begin, 2)
    assert [resumable("kivi4", n) for n in (63, 64, 75, 200)] == [0, 64, 64, 192] and resumable("int4", 75) == 75
    part, want = qkv[:40].copy(), make("kivi4", 40, 2, 1, 16)[1]
    for begin, rows in ((0, 40), (40, 24)):
        fill(qkv[:rows].copy(), want, begin, 2)
    fill(part, cache, 64, 2)
    fill(again := qkv[:40].copy(), want, 64, 2)
    assert attend(part, cache, 64, 2).tobytes() == attend(again, want, 64, 2).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KIVI)
def test_what_is_no_number_or_very_large_stays_finite(kind, isa):
    qkv, cache = make(kind, 70, 2, 1, 8)
    qkv[0, :32], qkv[1, [0, 9, 17, 25]] = np.nan, [np.inf, -np.inf, np.nan, np.inf]
    qkv[2, :32], qkv[3, :32] = 0, [1e30, -1e30, 1e-30, 0, 65504, 1e-7, -1e-7, 0] * 4
    for first in (60, 66):  # rows that see floats only, and rows that see codes
        qkv[first, 3], qkv[first + 1, 7], qkv[first + 2, :8] = np.nan, -np.inf, 3e38
    want = qkv.copy(), make(kind, 70, 2, 1, 8)[1]
    with np.errstate(invalid="ignore", over="ignore"):
        rope_kivi.rope_store_spec(*want, *tables(8), 0, 2)
        fill(qkv, cache, 0, 2, isa)
        assert contents(qkv, cache)[1:] == contents(*want)[1:]  # rows keep their NaN, whose sign is nobody's
        y = attend(qkv, cache, 0, 2, isa)
        assert np.isfinite(y).all() and y.tobytes() == attention_spec(queries(want[0], 2, 8), cache, 0).tobytes()
    assert np.isfinite(cache.key_scales).all() and values_of(cache, 0)[0, 0].tolist() == [0] * 8


def test_bad_requests_say_what_was_expected():
    qkv, cache = make("kivi4", 40, 2, 1, 16)
    with pytest.raises(KernelError, match="at most 65 rows, got 70"):
        rope_kivi.bind(np.zeros((70, 64), "f4"), cache, *tables(16), np.zeros(4, "i8"), heads=2)
    with pytest.raises(KernelError, match="multiple of kv_heads"):
        attend(qkv, allocate("kivi4", 3, 64, 16), 0, 2)
    with pytest.raises(KernelError, match="widen them"):
        attention_kivi.bind(qkv[:, :16].copy(), cache, np.zeros((40, 32), "f4"), np.zeros(4, "i8"), heads=2)
