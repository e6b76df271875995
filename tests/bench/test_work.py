"""Bytes and operations of a small decoder, counted by hand."""

from lutra.bench import work
from lutra.bench.case import Model
from lutra.compiler.launch import Workers
from lutra.model.transformer import Transformer

MODEL = Model("tiny", "int8-row")  # hidden 256, ffn 688, 4 layers, 4 heads of 64, 2 of them kv, vocabulary 4096


def test_operations_of_a_prompt() -> None:
    """Per token and layer qkv 512, o 256, gate and up 1376 rows of 256; down 256 of 688; the head once."""
    weights = MODEL.make(8)
    layer = (512 + 256 + 1376) * 256 + 256 * 688
    assert work.prefill_operations(weights, 10) == 2 * (10 * 4 * layer + 4096 * 256)
    assert {place: len(found) for place, found in work.linears(weights).items()} == {
        "qkv": 4, "o": 4, "gate_up": 4, "down": 4, "head": 1,
    }  # fmt: skip


def test_bytes_of_the_cache() -> None:
    """A position: 4 layers of 2 heads of 64, keys and values of 2 bytes.  Tokens 11, 12, 13 read 11, 12, 13 of them."""
    transformer = Transformer(MODEL.config, MODEL.make(8), Workers(1), 16)
    assert work.position_bytes(MODEL.config, transformer) == 4 * 2 * 64 * 2 * 2
    assert work.cache_bytes(2048, prompt=10, gen=3) == 12 * 2048
