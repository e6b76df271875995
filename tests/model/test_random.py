"""Random decoders of every format run, and every kernel family and instruction set gives them the same bits."""

from dataclasses import replace

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.launch import Workers
from lutra.errors import FormatError, RequestError
from lutra.formats import catalog
from lutra.kernels import choose, stored
from lutra.model.config import ModelConfig
from lutra.model.random import SHAPES, linear_sizes, random_config, random_weights, weight_bytes
from lutra.model.transformer import Transformer
from tests.cover import axes_of, cover

TOKENS = [1, 3, 200, 7, 9, 30]
ISAS = [target.isa for target in targets.available()]
LOOKED_UP = [name for name, form in catalog.FORMATS.items() if stored.EXTENTS["lut"].holds(form)]


def small_config() -> ModelConfig:
    """The tiny shape with one layer and a vocabulary that is no multiple of a tile."""
    return replace(random_config("tiny"), num_layers=1, vocab_size=300)


def logits(name: str, order: str | None, chunk: int = 1, isa: str | None = None) -> np.ndarray:
    """Logits after the last of TOKENS, taken `chunk` at a time; f32 [vocab]."""
    config = small_config()
    weights = random_weights(config, catalog.find(name), order)
    transformer = Transformer(config, weights, Workers(1), 16, chunk=chunk, isa=isa)
    for start in range(0, len(TOKENS), chunk):
        out = transformer.prefill(TOKENS[start : start + chunk], start)
    return out


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def axes(name: str) -> set[tuple]:
    return axes_of(catalog.FORMATS[name])


@pytest.mark.parametrize("name", cover(catalog.FORMATS, axes))
def test_every_axis_of_formats_runs(name: str) -> None:
    out = logits(name, None)
    assert np.isfinite(out).all() and out.std() > 0


@pytest.mark.parametrize("name", ["e4m3-row", "e4m3-g128-f32"])
def test_floats_of_8_bits_run(name: str) -> None:
    out = logits(name, None)
    assert np.isfinite(out).all() and out.std() > 0
    assert_same_bits(logits(name, None, chunk=6), out)


@pytest.mark.parametrize("name", cover(LOOKED_UP, axes))
def test_lookup_and_multiply_add_give_the_same_bits(name: str) -> None:
    assert_same_bits(logits(name, "lut"), logits(name, "mad"))


@pytest.mark.parametrize("name", ["ternary", "planes3-g128-zeros", "planes4-g32-mins"])
def test_several_rows_at_once_give_the_same_bits(name: str) -> None:
    want = logits(name, "mad")
    assert_same_bits(logits(name, "mad", chunk=6), want)
    assert_same_bits(logits(name, "lut", chunk=5), want)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    want = logits("ternary", "mad")
    chunk = 5 if isa == ISAS[0] else 1  # five rows, then one; longer to compile, and tests/kernels has them everywhere
    assert_same_bits(logits("ternary", "trit5", chunk=chunk, isa=isa), want)
    if isa != "portable":  # whose lookups are slow to compile
        assert_same_bits(logits("ternary", "lut", isa=isa), want)


def test_the_same_seed_gives_the_same_weights() -> None:
    config, format = small_config(), catalog.find("ternary")
    first, again, other = (random_weights(config, format, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.embed.codes, again.embed.codes)
    assert not np.array_equal(first.embed.codes, other.embed.codes)


@pytest.mark.parametrize("order", ["mad", "lut"])
def test_every_row_has_its_weights(order: str) -> None:
    """Rows beyond the sampled ones repeat them, tile by tile: as many codes and scales as a whole weight has."""
    config, format = replace(random_config("tiny"), num_layers=1), catalog.find("planes2-g64-mins")
    head = random_weights(config, format, order).head.weight
    assert (head.n, head.k, head.order) == (4096, 256, order)
    assert head.codes.size == 4096 * 256 * 2 // 8
    assert head.scales.nbytes == head.mins.nbytes == 4096 * 256 // 64 * 2
    assert choose.tile_m(head, 1) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_decoders(shape: str) -> None:
    config = random_config(shape)
    assert config.hidden_size % config.num_heads == 0 and config.num_heads % config.num_kv_heads == 0
    assert config.head_dim % 2 == 0


def test_an_unknown_shape_lists_the_known_ones() -> None:
    with pytest.raises(RequestError, match="expected a shape of tiny, .*, got '9b'; choose"):
        random_config("9b")


@pytest.mark.parametrize("order", ["mad", "trit5"])
def test_the_bytes_are_known_before_they_are_taken(order: str) -> None:
    """Counted by hand: 2 bits a weight in mad order, K padded to 32; a byte per 5 in trit5; an f32 scale a row."""
    config, format = replace(random_config("tiny"), num_layers=3), catalog.find("ternary")
    rows = {256: 512 + 256 + 1408, 688: 256}  # qkv, o, gate and up (2 * 688, padded); down
    assert sum(n for n, k in linear_sizes(config).values()) == 512 + 256 + 1376 + 256
    a_row = {"mad": {256: 64 + 4, 688: 176 + 4}, "trit5": {256: 52 + 4, 688: 138 + 4}}[order]
    layer = sum(n * a_row[k] for k, n in rows.items())
    assert weight_bytes(config, format, order) == 3 * layer + 4096 * a_row[256]
    made = random_weights(config, format, order)
    assert made.bytes_per_token == 3 * layer + 4096 * a_row[256]
    assert made.embed is made.head.weight


def test_the_head_may_have_a_format_of_its_own() -> None:
    config = small_config()
    weights = random_weights(config, catalog.find("ternary"), head=catalog.find("int8-row"))
    assert weights.head.weight is weights.embed and weights.embed.format == catalog.find("int8-row")
    transformer = Transformer(config, weights, Workers(1), 16, chunk=16)
    assert np.isfinite(transformer.decode(1, 0)).all()


def test_an_order_that_cannot_hold_a_format_is_refused() -> None:
    with pytest.raises(FormatError, match="expected"):
        weight_bytes(small_config(), catalog.find("planes4-g32"), "trit5")
