"""A decoder's door: what it refuses, and that its ways in agree with one another."""

from pathlib import Path

import numpy as np
import pytest

from lutra.errors import CapacityError, RequestError
from lutra.model.load import load_model
from lutra.model.transformer import Transformer
from tests.files.gguf_writer import write_gguf
from tests.files.make_models import Sizes, gguf_metadata, gguf_name, interleave, random_state, tiny_llama_gguf

TOKENS = [1, *range(30, 69)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "model.gguf", quant="Q4_0")


@pytest.fixture(scope="module")
def transformer(path: Path) -> Transformer:
    return load_model(path, 1, 48, None).transformer


def test_prefill_decode_and_score_agree(transformer: Transformer) -> None:
    scorer = transformer.scorer(48)
    every = scorer.score(TOKENS, 0).copy()
    assert every.shape == (40, 264)
    np.testing.assert_array_equal(transformer.prefill(TOKENS, 0), every[-1])
    np.testing.assert_array_equal(transformer.prefill(TOKENS[:7], 0), every[6])
    np.testing.assert_array_equal(transformer.decode(TOKENS[7], 7), every[7])


def test_a_token_does_not_see_later_ones(transformer: Transformer) -> None:
    scorer = transformer.scorer(48)
    every = scorer.score(TOKENS, 0).copy()
    changed = scorer.score([*TOKENS[:20], *range(100, 120)], 0)
    np.testing.assert_array_equal(changed[:20], every[:20])
    assert (changed[20:] != every[20:]).any(axis=1).all()


@pytest.mark.parametrize(
    ("tokens", "position", "error", "message"),
    [
        ([], 0, RequestError, "at least one token"),
        ([1] * 49, 0, CapacityError, "at most 48 tokens of context, got 49; .*--ctx"),
        ([1], 48, CapacityError, "got 49"),
        ([1, 264], 0, RequestError, "ids below 264, .*got 264"),
        ([1, -1], 0, RequestError, "got -1"),
        ([5000], 0, RequestError, "got 5000"),
    ],
)
def test_what_it_refuses(
    transformer: Transformer, tokens: list[int], position: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        transformer.prefill(tokens, position)


def test_factors_of_the_rotation_are_used_and_reach_the_scorer(tmp_path: Path) -> None:
    """rope_freqs of 1 change nothing; others change what comes after the first token."""
    logits = {}
    for factor in (None, 1.0, 4.0):
        tensors = []
        for name, values in random_state(np.random.default_rng(0), "llama", Sizes()).items():
            heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
            tensors.append((gguf_name(name), "F32", interleave(values, heads) if heads else values))
        if factor is not None:
            tensors.append(("rope_freqs.weight", "F32", np.full(8, factor, np.float32)))
        write_gguf(tmp_path / "model.gguf", gguf_metadata("llama", Sizes()), tensors)
        transformer = load_model(tmp_path / "model.gguf", 1, 48, None).transformer
        logits[factor] = transformer.prefill(TOKENS, 0).copy()
        np.testing.assert_array_equal(transformer.scorer(48).score(TOKENS, 0)[-1], logits[factor])
    np.testing.assert_array_equal(logits[1.0], logits[None])
    assert (logits[4.0] != logits[None]).any()
