"""Every word of the kernel language: native on every instruction set equals its NumPy meaning."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lutra import fused
from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    absolute,
    bf16,
    bitcast,
    concat,
    const,
    convert,
    dot2x2,
    dot4,
    dot4_sum,
    extract,
    f16,
    f32,
    fma,
    i8,
    i16,
    i32,
    i64,
    load,
    lookup,
    loop,
    maximum,
    minimum,
    prefetch,
    reduce_add,
    reduce_max,
    round_even,
    select,
    shuffle,
    splat,
    sqrt,
    store,
    u8,
    u32,
    var,
    when,
)

ISAS = [target.isa for target in targets.available()]


@kernel
def add_two(x: Pointer[f32], y: Pointer[f32], task: i64):
    store(y, task, load(x, task) + 2.0)


def test_a_case_to_check_by_hand():
    y = np.zeros(3, np.float32)
    add_two.run({"x": np.array([1, 2, 3], np.float32), "y": y}, tasks=2)
    assert y.tolist() == [3.0, 4.0, 0.0]


@kernel
def float_words(x: Pointer[f32], y: Pointer[f32], n: i64, eps: f32, task: i64, *, lanes):
    a, b = load(x, 0, lanes), load(x, 64, lanes)
    for i, value in enumerate([
        a + b, a - b, a * b, a / b, minimum(a, b), maximum(a, b), absolute(a), sqrt(absolute(b)), round_even(a),
        select(a < b, a, b), select(a >= b, a, b * splat(eps, lanes)), -a, 1.0 - a, 3.0 / b,
        convert(convert(a, i32), f32), shuffle(a, b, [2 * lanes - 1 - j for j in range(lanes)]),
        splat(reduce_max(a), lanes), bitcast(bitcast(a, u32) ^ 0x80000000, f32),
    ]):  # fmt: skip
        store(y, i * 64, value)
    total = var(const(0.0, f32, lanes))
    for k in loop(0, n, lanes):
        prefetch(x, k + 4096, 2)
        total += load(x, k, lanes) * load(x, k, lanes)
    store(y, 18 * 64, reduce_add(total.get()))
    store(y, 18 * 64 + 1, extract(a, lanes - 1))
    with when((task * 3 + 1).equals(1)):
        store(y, 18 * 64 + 2, eps)


def float_arguments(lanes: int) -> dict:
    rng = np.random.default_rng(lanes)
    x = rng.standard_normal(128).astype(np.float32) * 30
    x[:4] = [0.0, -0.0, 1e-40, 2.5]
    return {"x": x, "y": np.zeros(20 * 64, np.float32), "n": 128, "eps": 0.25}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 4, 16, 32])
def test_float_words(isa, lanes):
    float_words.check(float_arguments(lanes), 1, isa, lanes=lanes)


@kernel
def fused_words(a: Pointer[f32], b: Pointer[f32], c: Pointer[f32], y: Pointer[f32], task: i64, *, lanes):
    at = task * lanes
    store(y, at, fma(load(a, at, lanes), load(b, at, lanes), load(c, at, lanes)))


def fused_arguments(count: int) -> dict[str, np.ndarray]:
    """Products that an addend nearly takes away, halves of a last place, subnormal numbers, infinities."""
    rng = np.random.default_rng(3)
    a, b = (np.ldexp(rng.uniform(-2, 2, count), rng.integers(-75, 55, count)).astype(np.float32) for _ in range(2))
    c = -(a.astype(np.float64) * b).astype(np.float32)  # what is left is what the product's rounding took
    far = np.arange(count) % 4
    c = np.where(far == 1, np.ldexp(c.astype(np.float64), rng.integers(-60, 6, count)), c).astype(np.float32)
    c[far == 2] = (np.ldexp(c[far == 2].astype(np.float64), 24) * (1 + 2.0**-23)).astype(np.float32)
    a[:8] = [1, 1 + 2**-12, 0, -0.0, np.inf, 3e38, -3e38, 2**-149]
    b[:8] = [1, 1 - 2**-12, 5, 5, 1, 3e38, 1, 0.5]
    c[:8] = [2**-24, -1, 0, -0.0, 1, -1, 3.4e38, 2**-149]
    return {"a": a, "b": b, "c": c, "y": np.zeros(count, np.float32)}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [4, 16, 32])
def test_a_product_and_a_sum_rounded_once(isa, lanes):
    with np.errstate(all="ignore"):
        fused_words.check(fused_arguments(4096), 4096 // lanes, isa, lanes=lanes)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [4, 16, 32])
def test_a_hard_sum_among_easy_ones(isa, lanes):
    """A little less than halfway from c to the next f32, which f64 cannot tell from halfway; both lanes' c are odd."""
    near, nearer = 2**-20, 2**-23
    hard = [  # around 1; and below 2**-126, where f32 are farther apart
        (2**-12 * (1 + near), 2**-12 * (1 - near), 1 + 2**-23),
        (2**-75 * (1 + nearer), 2**-75 * (1 - nearer), 2**-140 + 2**-149),
    ]
    assert all(float(fused.fma(*map(np.float32, three))) == three[2] for three in hard)
    rng = np.random.default_rng(5)
    args = {name: rng.uniform(1, 2, (lanes + 1, lanes)).astype(np.float32) for name in "abc"}
    for lane in range(lanes):  # one of them in each vector, but none in the last
        for name, number in zip("abc", hard[lane % 2], strict=True):
            args[name][lane, lane] = number
    flat = {name: array.ravel() for name, array in args.items()}
    fused_words.check({**flat, "y": np.zeros(flat["a"].size, np.float32)}, lanes + 1, isa, lanes=lanes)


def test_rounding_once_is_what_exact_fractions_say():
    args = fused_arguments(400)
    a, b, c = (args[name][8:] for name in "abc")
    got = fused.fma(a, b, c)
    for x, y, z, found in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        near = [np.nextafter(np.float32(found), np.float32(side)) for side in (-np.inf, np.inf)]
        assert all(abs(Fraction(found) - exact) <= abs(Fraction(float(other)) - exact) for other in near)


@kernel
def integer_words(a: Pointer[i32], b: Pointer[i32], u: Pointer[u8], y: Pointer[i32], task: i64):
    x, z = load(a, 0, 16), load(b, 0, 16)
    for i, value in enumerate([
        x + z, x - z, x * z, x & z, x | z, x ^ z, x << 3, x >> 5, bitcast(bitcast(x, u32) >> 7, i32), absolute(x),
        minimum(x, z), maximum(x, z), select((x & 1).equals(1), x, z), splat(reduce_add(x), 16),
        convert(convert(x, i16), i32), convert(convert(x, i8), i32), convert(load(u, 0, 16), i32),
        convert(bitcast(load(u, 0, 16), i8), i32), concat(load(a, 0, 8), load(b, 8, 8)),
    ]):  # fmt: skip
        store(y, i * 16, value)
    store(y, 19 * 16, convert((task + 7) // 2 + (task + 9) % 4, i32))


def integer_arguments() -> dict:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-(2**31) + 1, 2**31, 16).astype(np.int32) for _ in range(2))
    return {"a": a, "b": b, "u": rng.integers(0, 256, 16).astype(np.uint8), "y": np.zeros(400, np.int32)}


@pytest.mark.parametrize("isa", ISAS)
def test_integer_words(isa):
    integer_words.check(integer_arguments(), 1, isa)


@kernel
def half_words(
    h: Pointer[f16],
    b: Pointer[bf16],
    x: Pointer[f32],
    h2: Pointer[f16],
    b2: Pointer[bf16],
    y: Pointer[f32],
    task: i64,
    *,
    lanes,
):
    at = task * lanes
    store(y, at, convert(load(h, at, lanes), f32))
    store(y, at + 65536, convert(load(b, at, lanes), f32))
    store(h2, at, convert(load(x, at, lanes), f16))
    store(b2, at, convert(load(x, at, lanes), bf16))


def half_arguments() -> dict:
    """Every f16 and bf16, and floats where rounding to them is hard."""
    every = np.arange(65536, dtype=np.uint16)
    rng = np.random.default_rng(2)
    x = rng.integers(0, 2**32, 65536, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(32768, dtype=np.uint32) << 12) + 0x33000000  # around f16's subnormals, normals, and their ties
    x[: ties.size] = ties
    return {
        "h": every.view(np.float16), "b": every.view(ml_dtypes.bfloat16), "x": x.view(np.float32),
        "h2": np.zeros(65536, np.float16), "b2": np.zeros(65536, ml_dtypes.bfloat16), "y": np.zeros(131072, np.float32),
    }  # fmt: skip


def check_halves(args: dict) -> None:
    """What half_words stored must be NumPy's conversions; which NaN it is does not matter."""
    with np.errstate(over="ignore", invalid="ignore"):
        wants = (args["h"].astype(np.float32), args["b"].astype(np.float32),
                 args["x"].astype(np.float16), args["x"].astype(ml_dtypes.bfloat16))  # fmt: skip
    gots = (args["y"][:65536], args["y"][65536:], args["h2"], args["b2"])
    for want, got in zip(wants, gots, strict=True):
        same = (want.view(np.uint8) == got.view(np.uint8)).reshape(65536, -1).all(1)
        assert (same | (want != want)).all(), f"first difference at {int(np.argmin(same))}"
        assert ((got != got) == (want != want)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 8, 16])
def test_every_half_and_the_hard_floats(isa, lanes):
    args = half_arguments()
    half_words.run(args, 65536 // lanes, isa, lanes=lanes)
    check_halves(args)


@kernel
def low_bit_words(
    u: Pointer[u8],
    s: Pointer[i8],
    table: Pointer[u8],
    y: Pointer[i32],
    z: Pointer[u8],
    task: i64,
    *,
    lanes,
    bound,
    signed_bound,
):
    acc = var(const(-5, i32, lanes))
    for k in loop(0, 256, 4 * lanes):
        left, right = load(u, k, 4 * lanes), load(s, k, 4 * lanes)
        acc.set(dot4(acc, left, right, bound=bound, signed_bound=signed_bound))
    store(y, 0, acc)
    store(z, 0, lookup(load(table, 0, 16), load(u, 0, 4 * lanes) & 15))


def low_bit_arguments(bound: int, signed_bound: int = 128) -> dict:
    """Operands at the ends of their ranges."""
    rng = np.random.default_rng(bound)
    u = rng.integers(0, bound + 1, 256).astype(np.uint8)
    s = rng.choice(np.array([-signed_bound, -127, 127], np.int8), 256)
    u[:128], s[:128] = bound, 127  # where 16-bit sums would overflow first
    u[128:144], s[128:144] = 0, -signed_bound  # and where those of u - 128 would
    return {
        "u": u,
        "s": s,
        "table": rng.integers(0, 256, 16).astype(np.uint8),
        "y": np.zeros(32, np.int32),
        "z": np.zeros(128, np.uint8),
    }


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [4, 8, 16, 32])
@pytest.mark.parametrize("bound", [1, 15, 127, 128, 255])
def test_low_bit_words_at_their_extremes(isa, lanes, bound):
    low_bit_words.check(low_bit_arguments(bound), 1, isa, lanes=lanes, bound=bound, signed_bound=128)


@kernel
def wide_lookup(u: Pointer[u8], table: Pointer[i8], z: Pointer[i8], task: i64, *, lanes):
    index = load(u, 0, lanes)
    found = lookup(load(table, 0, 128), index & 127)
    store(z, 0, select(index >= 128, 0 - found, found))


def wide_lookup_arguments(start: int) -> dict:
    """128 indices from `start` on, whose sign bit is not part of the index."""
    u = (np.arange(start, start + 128) * 37 % 256).astype(np.uint8)
    table = np.random.default_rng(start).integers(-128, 128, 128).astype(np.int8)
    return {"u": u, "table": table, "z": np.zeros(128, np.int8)}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 16, 32, 64, 128])
def test_lookup_in_128_bytes(isa, lanes):
    for start in (0, 128):
        wide_lookup.check(wide_lookup_arguments(start), 1, isa, lanes=lanes)


@kernel
def summed_words(u: Pointer[u8], s: Pointer[i8], y: Pointer[i32], task: i64, *, lanes, bound, num_pairs):
    size = 4 * lanes
    pairs = [(load(u, k, size), load(s, k, size)) for k in range(0, num_pairs * size, size)]
    store(y, 0, dot4_sum(const(-5, i32, lanes), pairs, bound=bound))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
@pytest.mark.parametrize("bound, num_pairs", [(3, 8), (15, 8), (16, 8), (127, 1), (127, 2), (255, 3)])
def test_sums_of_dot_products_at_the_edge_of_16_bits(isa, lanes, bound, num_pairs):
    """Two products of each of 8 pairs: 16 * 15 * 128 = 30720 fits in 16 bits, 16 * 16 * 128 does not."""
    u, s = np.full(num_pairs * 4 * lanes, bound, np.uint8), np.full(num_pairs * 4 * lanes, -128, np.int8)
    for sign in (-128, 127):
        s[:] = sign
        args = {"u": u, "s": s, "y": np.zeros(lanes, np.int32)}
        summed_words.check(args, 1, isa, lanes=lanes, bound=bound, num_pairs=num_pairs)
        summed_words.run(args, 1, isa, lanes=lanes, bound=bound, num_pairs=num_pairs)
        assert (args["y"] == -5 + num_pairs * 4 * bound * sign).all()


@kernel
def square_words(a: Pointer[u8], b: Pointer[i8], y: Pointer[i32], task: i64, *, lanes, bound, signed_bound):
    acc = var(const(-5, i32, lanes))
    for k in loop(0, 128, 4 * lanes):
        left, right = load(a, k, 4 * lanes), load(b, k, 4 * lanes)
        acc.set(dot2x2(acc, left, right, bound=bound, signed_bound=signed_bound))
    store(y, 0, acc)


def square_arguments(bound: int, signed_bound: int) -> dict:
    """Random operands, then squares of nothing but the ends of their ranges."""
    rng = np.random.default_rng(bound + signed_bound)
    a = rng.integers(0, bound + 1, 128).astype(np.uint8)
    b = rng.integers(-signed_bound, min(signed_bound, 127) + 1, 128).astype(np.int8)
    a[64:], b[64:96], b[96:] = bound, -signed_bound, min(signed_bound, 127)
    return {"a": a, "b": b, "y": np.zeros(16, np.int32)}


def test_a_square_by_hand():
    """Rows 1 1 1 1 1 1 1 1 and 1 2 3 4 5 6 7 8 times rows of 2 and of -1 0 0 0 0 0 0 1: 16, 0 and 72, 7; and -5."""
    a, b = np.ones(128, np.uint8), np.zeros(128, np.int8)
    a[8:16], b[:8], b[8], b[15] = range(1, 9), 2, -1, 1
    args = {"a": a, "b": b, "y": np.zeros(16, np.int32)}
    square_words.interpret(args, 1, lanes=4, bound=8, signed_bound=2)
    assert args["y"].tolist() == [11, -5, 67, 2] + [0] * 12


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("bound, signed_bound", [(3, 127), (127, 128), (255, 127), (255, 128)])
def test_squares_at_their_extremes(isa, lanes, bound, signed_bound):
    static = dict(lanes=lanes, bound=bound, signed_bound=signed_bound)
    square_words.check(square_arguments(bound, signed_bound), 1, isa, **static)
