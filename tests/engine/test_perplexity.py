"""Perplexity by hand, against a plain float decoder, and its windows."""

import math
from pathlib import Path

import numpy as np
import pytest

from lutra.engine import perplexity
from lutra.engine.llm import LLM
from lutra.engine.perplexity import Window
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
        self.prefilled: list[tuple[list[int], int]] = []

    def prefill(self, tokens: list[int], position: int) -> None:
        self.prefilled.append((list(tokens), position))

    def score(self, tokens: list[int], position: int) -> np.ndarray:
        self.seen.append((list(tokens), position))
        return np.zeros((len(tokens), 8), np.float32)


def test_equal_chances_by_hand() -> None:
    uniform = Uniform()
    told: list[tuple[str, int, int]] = []

    def tell(label: str, done: int, total: int) -> None:
        told.append((label, done, total))

    found = perplexity.measure(uniform, [1, 2, 3, 4, 5, 6, 7], 0, 5, progress=tell)  # type: ignore[arg-type]
    assert found.value == pytest.approx(8.0) and found.error == pytest.approx(0) and found.num_windows == 2
    assert told == [("measuring", 4, 7), ("measuring", 7, 7)]
    # windows of BOS and 4 tokens; the last token of a window is only scored, never shown
    assert uniform.seen == [([0, 1, 2, 3], 0), ([0, 5, 6], 0)]


def test_long_windows_go_in_chunks() -> None:
    uniform = Uniform()
    perplexity.measure(uniform, [1, 2, 3, 4, 5, 6, 7], None, 7)  # type: ignore[arg-type]
    assert uniform.seen == [([1, 2, 3, 4], 0), ([5, 6], 4)]


def test_what_is_not_scored_never_meets_the_head() -> None:
    uniform = Uniform()
    found = perplexity.measure(uniform, [1, 2, 3, 4, 5, 6, 7] * 3, 0, 8, "llama.cpp")  # type: ignore[arg-type]
    assert uniform.prefilled == [([0, 1, 2, 3], 0), ([0, 2, 3, 4], 0)]
    assert uniform.seen == [([4, 5, 6], 4), ([5, 6, 7], 4)] and len(found.scores) == 6


# what a protocol cuts 1 2 3 ... into, by hand: the tokens of every window, and where scoring begins
HAND = [
    ("windows", [1, 2, 3, 4, 5], 0, 4, [([0, 1, 2, 3], 1), ([0, 4, 5], 1)]),
    ("windows", [1, 2, 3, 4, 5], None, 4, [([1, 2, 3, 4], 1)]),
    ("gptq", [1, 2, 3, 4, 5, 6, 7, 8], 0, 4, [([0, 1, 2, 3], 1), ([4, 5, 6, 7], 1)]),
    ("gptq", [1, 2, 3, 4, 5], None, 4, [([1, 2, 3, 4], 1)]),
    ("llama.cpp", [1, 2, 3, 4, 5, 6, 7, 8], 0, 4, [([0, 1, 2, 3], 3), ([0, 5, 6, 7], 3)]),
    ("llama.cpp", [1, 2, 3, 4, 5, 6, 7, 8], None, 4, [([1, 2, 3, 4], 3), ([5, 6, 7, 8], 3)]),
    ("llama.cpp", [1, 2, 3, 4, 5, 6, 7, 8, 9], 0, 5, [([0, 1, 2, 3, 4], 3), ([0, 6, 7, 8, 9], 3)]),
]


@pytest.mark.parametrize(("protocol", "tokens", "bos", "context", "windows"), HAND)
def test_windows_by_hand(
    protocol: str, tokens: list[int], bos: int | None, context: int, windows: list[tuple[list[int], int]]
) -> None:
    found = perplexity.cut(tokens, bos, context, protocol)
    assert [(window.tokens, window.first) for window in found] == windows


def test_the_result_says_by_which_protocol() -> None:
    said = str(perplexity.Perplexity("llama.cpp", 512, 2, np.log([2.0, 8.0])))
    assert said.startswith("perplexity 4.0000 ± 2.7726\n")  # exp(mean ln) = 4; sd of ln 2, ln 8 is ln 2 * sqrt 2
    assert "llama.cpp, context 512" in said and "2 tokens in 2 windows, 1.3863 nats" in said


def test_window_sizes() -> None:
    sizes = [perplexity.window_size(*asked) for asked in [("gptq", None, 4096), ("gptq", None, 64), ("gptq", 8, 64)]]
    assert sizes == [2048, 64, 8] and perplexity.window_size("windows", None, 4096) == 4096
    with pytest.raises(RequestError, match="expected a protocol of windows, gptq, llama.cpp"):
        perplexity.window_size("wikitext", None, 1)


def test_likelihoods_by_hand() -> None:
    class Sure(Uniform):
        def score(self, tokens: list[int], position: int) -> np.ndarray:
            logits = np.zeros((len(tokens), 2), np.float32)
            logits[:, 1] = math.log(3)  # token 1 three times as likely as token 0
            return logits

    scores = perplexity.negative_log_likelihoods(Sure(), Window([0, 1, 0]))  # type: ignore[arg-type]
    assert scores == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-6)
    table = perplexity.log_probabilities(Sure().score([0], 0))
    assert table[0] == pytest.approx([-math.log(4), -math.log(4 / 3)], rel=1e-6)


NOTHING = [
    ([], 0, 8, "windows"), ([1], None, 8, "windows"), ([1, 2, 3], 0, 1, "windows"), ([1, 2], None, 1, "windows"),
    ([1, 2, 3], None, 4, "gptq"), ([1, 2, 3, 4, 5, 6], 0, 4, "llama.cpp"), ([1, 2, 3, 4], 0, 2, "llama.cpp"),
]  # fmt: skip


@pytest.mark.parametrize(("tokens", "bos", "context", "protocol"), NOTHING)
def test_nothing_to_score_is_an_error(tokens: list[int], bos: int | None, context: int, protocol: str) -> None:
    with pytest.raises(RequestError, match="expected .* got|expected a text of at least two tokens"):
        perplexity.measure(Uniform(), tokens, bos, context, protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", ["gptq", "llama.cpp"])
def test_protocols_score_what_a_plain_run_scores(llm: LLM, protocol: str) -> None:
    """The prefill that skips the head, chunks and positions change no score."""
    tokens, bos = llm.tokens_of(TEXT)
    found = llm.measure(TEXT, 40, protocol=protocol)
    scorer = llm.transformer.scorer(40)
    wanted = []
    for window in perplexity.cut(tokens, bos, 40, protocol):
        every = perplexity.negative_log_likelihoods(scorer, Window(window.tokens))
        wanted += every[window.first - 1 :]
    assert found.scores.tolist() == wanted


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
