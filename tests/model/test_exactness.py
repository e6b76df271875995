"""Logits are the same bits on every instruction set, for any number of threads, and however a prompt is cut.

This is design.md's "numbers are specified", tested on whole models of every kind of weight.
"""

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.launch import Workers
from lutra.files import open_model
from lutra.kernels.pieces import PIECE
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.transformer import Transformer
from tests.files.make_models import tiny_hf, tiny_llama_gguf

ISAS = [target.isa for target in targets.available()]
CONTEXT = 96
TOKENS = [1, *(int(i) for i in np.random.default_rng(5).integers(3, 250, 40))]

MODELS = {
    "gguf-F32": lambda folder: _gguf(folder, "F32"),
    "gguf-Q4_0": lambda folder: _gguf(folder, "Q4_0"),
    "gguf-Q8_0": lambda folder: _gguf(folder, "Q8_0"),
    "qwen3": lambda folder: _hugging_face(folder, "qwen3"),
    "qwen2": lambda folder: _hugging_face(folder, "qwen2"),
    "bitnet": lambda folder: _hugging_face(folder, "bitnet"),
}


KV = {
    "int8 keys and values": ("gguf-Q8_0", "int8"),
    "int4 keys and values": ("qwen3", "int4"),
    "kivi4 keys and values": ("qwen3", "kivi4"),
}
Model = tuple[Path, str]  # where it is, and what its KV cache holds


def _gguf(folder: Path, quant: str) -> Path:
    tiny_llama_gguf(folder / "model.gguf", quant=quant)
    return folder / "model.gguf"


def _hugging_face(folder: Path, family: str) -> Path:
    tiny_hf(folder, family=family)
    return folder


def _transformer(
    model: Model, isa: str | None = None, threads: int = 1, chunk: int = 64, context: int = CONTEXT
) -> Transformer:
    path, kv = model
    file = open_model(path)
    config = config_from(file)
    weights = load_weights(file, config)
    return Transformer(config, weights, Workers(threads), context, chunk=chunk, isa=isa, kv=kv)


@pytest.fixture(scope="module", params=[*MODELS, *KV])
def model(request, tmp_path_factory) -> Model:
    name, kv = KV.get(request.param, (request.param, "f16"))
    return MODELS[name](tmp_path_factory.mktemp(name)), kv


@pytest.fixture(scope="module")
def want(model) -> np.ndarray:
    """Logits after the whole prompt, on the widest instruction set and one thread."""
    return _transformer(model).prefill(TOKENS, 0).copy()


def test_threads_do_not_change_a_bit(model, want):
    assert np.isfinite(want).all() and want.std() > 0
    got = _transformer(model, threads=2).prefill(TOKENS, 0)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("model, isa", [*zip([*MODELS, *KV], cycle(ISAS[1:] or ISAS))], indirect=["model"])
def test_instruction_sets_do_not_change_a_bit(model, want, isa):
    """Each model on one of them: tests/kernels has every kernel on all."""
    for threads in (1, 2):
        got = _transformer(model, isa, threads).prefill(TOKENS, 0)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("cuts", [[41], [1] * 41, [7, 13, 21], [16, 16, 9], [40, 1], [33, 8]], ids=str)
def test_cuts_of_the_prompt_do_not_change_a_bit(model, want, cuts):
    transformer, position = _transformer(model), 0
    for cut in cuts:
        got = transformer.prefill(TOKENS[position : position + cut], position)
        position += cut
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_chunk_size_and_earlier_texts_do_not_change_a_bit(model, want):
    transformer = _transformer(model, chunk=16)
    transformer.prefill([5] * 60, 0)  # leaves its keys and values in the cache
    np.testing.assert_array_equal(transformer.prefill(TOKENS, 0).view(np.uint32), want.view(np.uint32))


# ---- a text of several of attention's pieces -------------------------------------------------------------------------

LONG = [int(i) for i in np.random.default_rng(6).integers(3, 250, 2 * PIECE + 91)]  # three pieces, the last one partial
CACHES = {"f16": "gguf-Q8_0", "int8": "gguf-Q8_0", "kivi4": "gguf-Q8_0"}


@pytest.fixture(scope="module", params=CACHES)
def long_model(request, tmp_path_factory) -> Model:
    return MODELS[CACHES[request.param]](tmp_path_factory.mktemp("long")), request.param


@pytest.fixture(scope="module")
def long_want(long_model) -> list[bytes]:
    """Logits after the first cut and after each of seven single tokens, one thread, the widest instruction set."""
    return _long_logits(long_model, [2 * PIECE + 84] + [1] * 7)


def _long_logits(model: Model, cuts: list[int], isa: str | None = None, threads: int = 1) -> list[bytes]:
    """Logits after each cut, as bytes."""
    transformer, position, logits = _transformer(model, isa, threads, context=len(LONG)), 0, []
    for cut in cuts:
        logits.append(transformer.prefill(LONG[position : position + cut], position).tobytes())
        position += cut
    assert position == len(LONG)
    return logits


WIDE = [isa for isa in ISAS if isa in ("avx512", "avx2")]


@pytest.mark.parametrize("isa", WIDE)
@pytest.mark.parametrize("threads", [1, 2])
def test_several_pieces_are_the_same_bits_everywhere(long_model, long_want, isa, threads):
    """Blocks of rows that merge as they go, then single rows whose pieces are merged by a launch of their own."""
    assert _long_logits(long_model, [2 * PIECE + 84] + [1] * 7, isa, threads) == long_want


@pytest.mark.parametrize(
    "cuts",
    [[len(LONG)], [PIECE, PIECE, 91], [PIECE - 1, 2, PIECE + 88, 2], [2 * PIECE - 3, *[1] * 6, 88], [600, 3]],
    ids=["whole", "pieces", "across", "single rows across", "short end"],
)
def test_cuts_of_several_pieces_do_not_change_a_bit(long_model, long_want, cuts):
    assert _long_logits(long_model, cuts)[-1] == long_want[-1]
