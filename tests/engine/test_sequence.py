"""What a new prompt shares with the old one is not computed again, and gives the same bits as computing it."""

from pathlib import Path

import numpy as np
import pytest

from lutra.engine.llm import LLM
from lutra.engine.runner import run_pending
from lutra.engine.sequence import Sequence


def test_by_hand() -> None:
    sequence = Sequence([1, 2, 3, 4], num_cached=3)
    assert sequence.restart([1, 2, 9, 4]) == 2
    assert (sequence.tokens, sequence.num_cached) == ([1, 2, 9, 4], 2)


@pytest.mark.parametrize(
    ("tokens", "num_cached", "prompt", "want"),
    [
        ([], 0, [1, 2], 0),                        # nothing cached
        ([1, 2, 3], 3, [1, 2, 3], 2),              # the same again: the last token's logits are needed
        ([1, 2, 3], 3, [1, 2], 1),                 # a shorter one
        ([1, 2, 3], 2, [1, 2, 3, 4], 2),           # token 3 was drawn but never computed
        ([1, 2, 3], 3, [7, 2, 3], 0),              # differs at once
        ([1], 1, [1], 0),
    ],
)  # fmt: skip
def test_where_the_computing_starts(tokens: list[int], num_cached: int, prompt: list[int], want: int) -> None:
    sequence = Sequence(tokens, num_cached)
    assert sequence.restart(prompt) == want == sequence.num_cached
    assert sequence.tokens == prompt


def test_the_cache_may_ask_to_begin_earlier() -> None:
    sequence = Sequence([1, 2, 3, 4, 5], num_cached=5)
    assert sequence.restart([1, 2, 3, 4, 6], lambda position: position // 3 * 3) == 3 == sequence.num_cached


def test_reuse_of_keys_in_groups_does_not_change_a_bit(gguf: Path) -> None:
    """The first text has gone on far enough to take the place of the floats that the second one would read."""
    first = [3 + 7 * i % 250 for i in range(200)]
    second = [*first[:75], *(5 + 11 * i % 240 for i in range(12))]
    used, fresh = (LLM.load(gguf, threads=1, context=256, kv="kivi4") for _ in range(2))
    for prompt in (first, second):
        cached = used.sequence.restart(prompt, used.transformer.resumable)
        got = run_pending(used.transformer, used.sequence).copy()
    assert cached == 64
    fresh.sequence.restart(second)
    want = run_pending(fresh.transformer, fresh.sequence)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("shared_tokens", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("model", ["gguf", "bitnet"])
def test_reuse_does_not_change_a_bit(request: pytest.FixtureRequest, model: str, shared_tokens: int) -> None:
    path: Path = request.getfixturevalue(model)
    first = [3 + 7 * i % 250 for i in range(30)]
    second = [*first[:shared_tokens], *(5 + 11 * i % 240 for i in range(12 - shared_tokens))]
    used, fresh = (LLM.load(path, threads=1, context=64) for _ in range(2))
    for prompt in (first, second):
        used.sequence.restart(prompt)
        got = run_pending(used.transformer, used.sequence).copy()
    fresh.sequence.restart(second)
    want = run_pending(fresh.transformer, fresh.sequence)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
