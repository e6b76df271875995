"""Divergence by hand, of a model from itself, and of a rounded one."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lutra.engine import perplexity
from lutra.engine.divergence import Divergence, compare, distance_from, divergence
from lutra.engine.llm import LLM
from lutra.errors import RequestError

TEXT = "It was the best of times, it was the worst of times. " * 4


def logits(*chances: float) -> np.ndarray:
    return np.log(np.array([chances], np.float32))


def test_two_tokens_by_hand() -> None:
    kl, agrees, reference, other = compare(logits(0.5, 0.5), logits(0.25, 0.75), [1])
    assert kl[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert not agrees[0]  # 0 on a tie, 1
    assert (reference[0], other[0]) == (pytest.approx(math.log(2)), pytest.approx(-math.log(0.75)))
    assert compare(logits(0.1, 0.9), logits(0.2, 0.8), [0])[1][0]


def test_a_chance_of_nothing_is_no_nan() -> None:
    p, q = np.array([[0.0, -2000.0]], np.float32), np.array([[0.0, 0.0]], np.float32)
    assert compare(p, q, [0])[0][0] == pytest.approx(math.log(2))


def test_summaries_by_hand() -> None:
    kl = np.arange(101) / 100
    agrees = np.arange(101) % 2 == 0
    found = Divergence(kl, agrees, np.full(101, math.log(2)), math.log(2) + kl)
    assert found.kl_summary() == pytest.approx({"mean": 0.5, "median": 0.5, "99 %": 0.99, "max": 1.0})
    assert found.top1 == pytest.approx(51 / 101) and found.perplexities == pytest.approx((2, 2 * math.exp(0.5)))
    assert found.loss_increase == pytest.approx((0.5, kl.std(ddof=1) / math.sqrt(101)))


def test_a_model_does_not_differ_from_itself(gguf: Path) -> None:
    llm = LLM.load(gguf, threads=1, context=64)
    windows = perplexity.cut(*llm.tokens_of(TEXT), 64)
    told: list[int] = []
    found = divergence(
        llm.transformer.scorer(64), llm.transformer.scorer(64), windows, lambda label, done, total: told.append(done)
    )
    assert not found.kl.any() and found.top1 == 1 and found.loss_increase == (0, 0)
    assert told[-1] == len(found.kl) == sum(window.num_scored for window in windows)
    assert found.perplexities[0] == llm.perplexity(TEXT, 64)


def test_coarser_heads_are_further_away(gguf: Path) -> None:
    means = []
    llm = LLM.load(gguf, threads=1, context=64)
    windows = perplexity.cut(*llm.tokens_of(TEXT), 64)
    for head in ("int8-g32", "planes4-g32", "planes2-g64-mins"):
        other = LLM.load(gguf, threads=1, context=64, head=head)
        found = divergence(llm.transformer.scorer(64), other.transformer.scorer(64), windows)
        assert (found.kl >= 0).all() and 0 <= found.top1 <= 1
        means.append(found.kl_summary()["mean"])
    assert 0 < means[0] < means[1] < means[2]


def test_vocabularies_must_agree() -> None:
    models = [SimpleNamespace(config=SimpleNamespace(vocab_size=size)) for size in (8, 9)]
    with pytest.raises(RequestError, match="expected two models of one vocabulary, got 8 and 9 tokens"):
        divergence(*models, [])  # type: ignore[arg-type]


def test_the_distance_is_the_mean_divergence(gguf: Path) -> None:
    fine, rough = (LLM.load(gguf, threads=1, context=64, head=head) for head in (None, "planes4-g32"))
    windows = perplexity.cut(*fine.tokens_of(TEXT), 32)
    scorers = [llm.transformer.scorer(32) for llm in (fine, rough)]
    distance = distance_from(scorers[0], windows)
    wanted = float(divergence(*scorers, windows).kl.mean())
    assert distance(scorers[1]) == pytest.approx(wanted, rel=1e-3) and wanted > 1e-5
    assert distance(scorers[0]) == pytest.approx(0, abs=1e-6)
