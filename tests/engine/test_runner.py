"""The runner computes what the cache lacks, once, and says so under LUTRA_DEBUG=sched."""

import numpy as np
import pytest

from lutra.engine.llm import LLM
from lutra.engine.runner import run_pending
from lutra.engine.sequence import Sequence
from lutra.errors import CapacityError


def test_only_pending_tokens_run(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    prefill = llm.transformer.prefill
    monkeypatch.setattr(llm.transformer, "prefill", lambda ids, at: ran.append((list(ids), at)) or prefill(ids, at))
    sequence = Sequence([1, 2, 3])
    run_pending(llm.transformer, sequence)
    sequence.tokens.append(4)
    logits = run_pending(llm.transformer, sequence).copy()
    assert ran == [([1, 2, 3], 0), ([4], 3)] and sequence.num_cached == 4
    whole = run_pending(llm.transformer, Sequence([1, 2, 3, 4]))
    np.testing.assert_array_equal(logits.view(np.uint32), whole.view(np.uint32))


def test_no_room_is_an_error_and_leaves_the_books_as_they_were(llm: LLM) -> None:
    sequence = Sequence([1, 2])
    run_pending(llm.transformer, sequence)
    sequence.tokens += [3] * 200
    keys = [cache.keys.copy() for cache in llm.transformer.buffers.caches]
    with pytest.raises(CapacityError, match=r"at most 64 tokens of context, got 202; .*--ctx"):
        run_pending(llm.transformer, sequence)
    assert sequence.num_cached == 2
    for before, cache in zip(keys, llm.transformer.buffers.caches, strict=True):
        np.testing.assert_array_equal(before, cache.keys)


def test_sched_prints_what_runs(llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LUTRA_DEBUG", "sched")
    run_pending(llm.transformer, Sequence([1, 2, 3]))
    assert capsys.readouterr().err == "3 tokens from position 0\n"
