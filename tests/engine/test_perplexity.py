"""Perplexity by hand, against a plain float decoder, and its windows."""

import math
from pathlib import Path

import numpy as np
import pytest

from lutra.engine import perplexity
from lutra.engine.llm import LLM
from lutra.errors import RequestError
from lutra.files import open_model
from lutra.model.config import config_from
from tests.files.make_models import BOS_ID
from tests.reference_decoder import ReferenceDecoder

TEXT = "It was the best of times, it was the worst of times. " * 3


class Uniform:
    """A transformer that expects every token of 8 alike, and remembers what it was shown."""

    chunk = 4

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], int]] = []

    def score(self, tokens: list[int], position: int) -> np.ndarray:
        self.seen.append((list(tokens), position))
        return np.zeros((len(tokens), 8), np.float32)


def test_equal_chances_by_hand() -> None:
    uniform = Uniform()
    told: list[tuple[str, int, int]] = []

    def tell(label: str, done: int, total: int) -> None:
        told.append((label, done, total))

    value = perplexity.perplexity(uniform, [1, 2, 3, 4, 5, 6, 7], 0, 5, tell)  # type: ignore[arg-type]
    assert value == pytest.approx(8.0)
    assert told == [("measuring", 4, 7), ("measuring", 7, 7)]
    # windows of BOS and 4 tokens; the last token of a window is only scored, never shown
    assert uniform.seen == [([0, 1, 2, 3], 0), ([0, 5, 6], 0)]


def test_long_windows_go_in_chunks() -> None:
    uniform = Uniform()
    perplexity.perplexity(uniform, [1, 2, 3, 4, 5, 6, 7], None, 7)  # type: ignore[arg-type]
    assert uniform.seen == [([1, 2, 3, 4], 0), ([5, 6], 4)]


def test_likelihoods_by_hand() -> None:
    class Sure(Uniform):
        def score(self, tokens: list[int], position: int) -> np.ndarray:
            logits = np.zeros((len(tokens), 2), np.float32)
            logits[:, 1] = math.log(3)  # token 1 three times as likely as token 0
            return logits

    scores = perplexity.negative_log_likelihoods(Sure(), [0, 1, 0])  # type: ignore[arg-type]
    assert scores == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-6)


NOTHING = [([], 0, 8), ([1], None, 8), ([1, 2, 3], 0, 1), ([1, 2], None, 1)]


@pytest.mark.parametrize(("tokens", "bos", "context"), NOTHING)
def test_nothing_to_score_is_an_error(tokens: list[int], bos: int | None, context: int) -> None:
    with pytest.raises(RequestError, match="expected .* got|expected a text of at least two tokens"):
        perplexity.perplexity(Uniform(), tokens, bos, context)  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [24, 80])
def test_equals_a_plain_float_decoder(gguf: Path, context: int) -> None:
    llm = LLM.load(gguf, threads=1, context=80)
    file = open_model(gguf)
    reference = ReferenceDecoder(file, config_from(file))
    tokens = llm.tokenizer.encode(TEXT, add_bos=False)
    scores: list[float] = []
    for start in range(0, len(tokens), context - 1):
        window = [BOS_ID, *tokens[start : start + context - 1]]
        logits = reference.logits(window)[:-1]
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        scores += [-math.log(row[token]) for row, token in zip(chances, window[1:], strict=True)]
    assert llm.perplexity(TEXT, context) == pytest.approx(math.exp(sum(scores) / len(scores)), rel=1e-3)


def test_measuring_leaves_the_conversation_alone(llm: LLM) -> None:
    llm.sequence.restart([1, 2, 3])
    llm.perplexity("some text", 16)
    assert llm.sequence.tokens == [1, 2, 3] and llm.transformer.context == 64
