"""Where greedy texts part: counting by hand, and two roundings of one model."""

from pathlib import Path

import pytest

from lutra.engine.llm import LLM
from lutra.engine.parting import Parting, part, prompts_of, report
from lutra.errors import RequestError


def test_common_by_hand() -> None:
    assert Parting([0], [1, 2, 3], [1, 2, 4]).common == 2
    assert Parting([0], [1, 2], [1, 2, 4]).common == 2 and not Parting([0], [1, 2], [1, 2, 4]).is_same
    assert Parting([0], [1, 2], [1, 2]).is_same and Parting([0], [], [1]).common == 0


def test_prompts_lie_evenly_over_the_text() -> None:
    assert prompts_of([1, 2, 3, 4, 5], 0, 3, 2) == [[0, 1], [0, 3], [0, 5]]
    assert prompts_of([1, 2, 3], None, 9, 3) == [[1, 2, 3]]  # one place only
    with pytest.raises(RequestError, match="expected a text of at least 4 tokens"):
        prompts_of([1, 2, 3], None, 1, 4)


def test_a_model_writes_what_it_writes(gguf: Path) -> None:
    first, second = (LLM.load(gguf, threads=1, context=64) for _ in range(2))
    found = part(first, second, prompts_of(*first.tokens_of("It was the best of times"), 2, 8), 8)
    assert all(parting.is_same for parting in found) and found[0].first
    assert list(report(found, first)) == ["2 of 2 greedy texts of up to 8 tokens are the same"]


def test_another_head_writes_another_text(gguf: Path) -> None:
    first = LLM.load(gguf, threads=1, context=64)
    second = LLM.load(gguf, threads=1, context=64, head="planes1-g32-mins")
    told: list[int] = []
    prompts = prompts_of(*first.tokens_of("It was the best of times"), 2, 8)
    found = part(first, second, prompts, 8, lambda label, done, total: told.append(done))
    lines = list(report(found, first))
    assert told == [1, 2] and not all(parting.is_same for parting in found)
    assert lines[1].startswith("the others part after ") and lines[2].startswith("  both") and len(lines) == 5
