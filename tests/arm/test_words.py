"""Every word of the kernel language means on ARM what it means in NumPy."""

import copy

import numpy as np
import pytest

from lutra.compiler.kernel import Kernel
from tests.arm.emulator import ISAS, Emulator
from tests.compiler.test_words import (
    check_halves,
    float_arguments,
    float_words,
    half_arguments,
    half_words,
    integer_arguments,
    integer_words,
    low_bit_arguments,
    low_bit_words,
    square_arguments,
    square_words,
    summed_words,
    wide_lookup,
    wide_lookup_arguments,
)


def check(emulator: Emulator, kernel: Kernel, args: dict, isa: str, **static) -> None:
    """Run interpreted and emulated on copies; every buffer must be the same."""
    want, got = copy.deepcopy(args), copy.deepcopy(args)
    kernel.interpret(want, 1, **static)
    emulator.run(kernel, got, 1, isa, **static)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_float_words(emulator, isa, lanes):
    check(emulator, float_words, float_arguments(lanes), isa, lanes=lanes)


@pytest.mark.parametrize("isa", ISAS)
def test_integer_words(emulator, isa):
    check(emulator, integer_words, integer_arguments(), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 16])
def test_every_half_and_the_hard_floats(emulator, isa, lanes):
    args = half_arguments()
    emulator.run(half_words, args, 65536 // lanes, isa, lanes=lanes)
    check_halves(args)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize("bound, signed_bound", [(15, 127), (127, 128), (128, 127), (255, 127), (255, 128)])
def test_low_bit_words_at_their_extremes(emulator, isa, lanes, bound, signed_bound):
    args = low_bit_arguments(bound, signed_bound)
    check(emulator, low_bit_words, args, isa, lanes=lanes, bound=bound, signed_bound=signed_bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bound, signed_bound", [(3, 127), (127, 128), (255, 127), (255, 128)])
def test_squares_at_their_extremes(emulator, isa, bound, signed_bound):
    for lanes in (4, 16):
        args = square_arguments(bound, signed_bound)
        check(emulator, square_words, args, isa, lanes=lanes, bound=bound, signed_bound=signed_bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("start", [0, 128])
def test_lookup_in_128_bytes(emulator, isa, start):
    check(emulator, wide_lookup, wide_lookup_arguments(start), isa, lanes=64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bound, num_pairs", [(3, 8), (15, 8), (16, 8), (127, 1), (127, 2), (255, 3)])
def test_sums_of_dot_products_at_the_edge_of_16_bits(emulator, isa, bound, num_pairs):
    for sign in (-128, 127):
        u, s = np.full(num_pairs * 64, bound, np.uint8), np.full(num_pairs * 64, sign, np.int8)
        args = {"u": u, "s": s, "y": np.zeros(16, np.int32)}
        check(emulator, summed_words, args, isa, lanes=16, bound=bound, num_pairs=num_pairs)
