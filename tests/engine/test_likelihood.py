"""Log-likelihood by hand, against a run without any cache, and how a pair is cut into tokens."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lutra.engine.likelihood import Judge, encode_pair
from lutra.engine.llm import LLM
from lutra.engine.perplexity import Window, negative_log_likelihoods
from lutra.errors import RequestError


class Counting:
    """A transformer that expects the token after the one it sees, three times as likely as any other of 5."""

    chunk, context = 3, 8

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[int], int]] = []

    def resumable(self, position: int) -> int:
        return position

    def prefill(self, tokens: list[int], position: int) -> None:
        self.seen.append(("prefill", list(tokens), position))

    def score(self, tokens: list[int], position: int) -> np.ndarray:
        self.seen.append(("score", list(tokens), position))
        logits = np.zeros((len(tokens), 5), np.float32)
        logits[np.arange(len(tokens)), [(token + 1) % 5 for token in tokens]] = math.log(3)
        return logits


class Letters:
    """Every character is a token, but two spaces are one; begins texts with 0."""

    bos_id, eos_ids = 0, ()

    def encode(self, text: str) -> list[int]:
        return [0, *(ord(letter) for letter in text.replace("  ", "_"))]


def judge(**options: Any) -> Judge:
    return Judge(Counting(), Letters(), **options)  # type: ignore[arg-type]


def test_chances_by_hand() -> None:
    found = judge().tokens([0, 1], [2, 3])
    assert found.nats == pytest.approx(2 * math.log(3 / 7)) and found.is_greedy and found.num_tokens == 2
    found = judge().tokens([0, 1], [2, 4])
    assert found.nats == pytest.approx(math.log(3 / 7) + math.log(1 / 7)) and not found.is_greedy


def test_what_texts_share_is_computed_once() -> None:
    model = judge()
    for ending in ([4, 0], [4, 1], [2, 2, 2, 2]):
        model.tokens([0, 1, 2, 3], ending)
    assert model.transformer.seen == [  # type: ignore[attr-defined]
        ("prefill", [0, 1, 2], 0), ("score", [3, 4], 3), ("score", [3, 4], 3),
        ("score", [3, 2, 2], 3), ("score", [2], 6),
    ]  # fmt: skip
    model.transformer.seen.clear()  # type: ignore[attr-defined]
    model.tokens([0, 1, 4, 3], [0])
    assert model.transformer.seen == [("prefill", [4], 2), ("score", [3], 3)]  # type: ignore[attr-defined]


def test_long_pairs_lose_their_front() -> None:
    model = judge()
    found = model.tokens(list(range(5)) * 3, [0, 1])
    assert model.transformer.seen[0] == ("prefill", [3, 4, 0, 1, 2, 3], 0)  # type: ignore[attr-defined]
    assert found.is_greedy and found.num_tokens == 2
    assert judge().tokens([4], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]).num_tokens == 8  # only what there is room for


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(RequestError, match="expected a continuation of at least one token"):
        judge().tokens([1], [])


def test_spaces_go_with_the_continuation() -> None:
    assert encode_pair(Letters(), "ab ", "cd") == ([0, 97, 98], [32, 99, 100])  # type: ignore[arg-type]
    assert encode_pair(Letters(), "ab ", " cd") == ([0, 97, 98], [95, 99, 100])  # type: ignore[arg-type]
    assert encode_pair(Letters(), "", "a") == ([0], [97])  # type: ignore[arg-type]


def test_no_context_and_no_bos_begins_with_the_end_token() -> None:
    bare = SimpleNamespace(bos_id=None, eos_ids=(7, 5), encode=lambda text: [ord(letter) for letter in text])
    assert encode_pair(bare, "", "ab") == ([5], [97, 98])  # type: ignore[arg-type]


def test_equals_a_run_without_a_cache(llm: LLM) -> None:
    model = Judge(llm.transformer.scorer(64), llm.tokenizer)
    for context, ending in [("It was the best", " of times"), ("It was the best", " of all"), ("It was", " so")]:
        front, back = encode_pair(llm.tokenizer, context, ending)
        window = Window(front + back, len(front))
        fresh = negative_log_likelihoods(llm.transformer.scorer(64), window)
        assert model.text(context, ending).nats == pytest.approx(-sum(fresh), rel=1e-12)
