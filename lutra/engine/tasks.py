"""Accuracy on questions with given answers, by log-likelihood: ARC, PIQA, HellaSwag, WinoGrande, COPA, LAMBADA.

A model answers with the pair of context and continuation it holds for likeliest; per character, for the normalised
accuracy, so that long answers lose nothing.  A question with one pair is right if the model would say the continuation.
Zero-shot, protocol of EleutherAI's lm-evaluation-harness (multiple_choice and loglikelihood): acc and acc_norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutra.engine.likelihood import Judge
from lutra.engine.llm import LLM
from lutra.engine.readers import Question
from lutra.model.load import Progress


@dataclass(frozen=True)
class Score:
    """The answer to one question: whether it is right, whether it is by the normalised rule, nats of the right pair."""

    is_right: bool
    is_right_normalised: bool
    nats: float


@dataclass(frozen=True)
class Result:
    """What a task came to."""

    name: str
    scores: tuple[Score, ...]
    is_cloze: bool

    @property
    def accuracy(self) -> tuple[float, float]:
        """Share of right answers and its standard error."""
        return mean_and_error([score.is_right for score in self.scores])

    @property
    def normalised(self) -> tuple[float, float] | None:
        """The same by log-likelihood per character; None where there is nothing to choose from."""
        return None if self.is_cloze else mean_and_error([score.is_right_normalised for score in self.scores])

    @property
    def perplexity(self) -> float | None:
        """exp of the mean of minus log p of the whole continuation, as lm-eval gives it for LAMBADA; else None."""
        nats = [-score.nats for score in self.scores]
        return math.exp(math.fsum(nats) / len(nats)) if self.is_cloze else None

    def to_json(self) -> dict[str, object]:
        """The numbers, unrounded."""
        accuracy, error = self.accuracy
        found: dict[str, object] = {"task": self.name, "questions": len(self.scores)}
        found |= {"accuracy": accuracy, "accuracy_error": error}
        if self.normalised is not None:
            found |= {"per_character": self.normalised[0], "per_character_error": self.normalised[1]}
        return found if self.perplexity is None else found | {"perplexity": self.perplexity}

    def cells(self) -> dict[str, str]:
        """Heading → text of a table."""
        return {
            "task": self.name,
            "questions": str(len(self.scores)),
            "accuracy": percent(self.accuracy),
            "per character": "-" if self.normalised is None else percent(self.normalised),
            "perplexity": "-" if self.perplexity is None else f"{self.perplexity:.2f}",
        }


def percent(share: tuple[float, float]) -> str:
    return f"{100 * share[0]:.2f} ± {100 * share[1]:.2f} %"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a sample and the standard error of it, that of one value being infinite."""
    numbers = np.asarray(values, np.float64)
    error = numbers.std(ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.inf
    return float(numbers.mean()), float(error)


def answer(judge: Judge, question: Question) -> Score:
    """Let the model answer.  Equal likelihoods: the first pair counts, as in lm-eval."""
    found = [judge.text(*pair) for pair in question.pairs]
    nats = np.array([each.nats for each in found])
    if question.is_cloze:
        return Score(found[0].is_greedy, found[0].is_greedy, float(nats[0]))
    lengths = [max(len(ending.removeprefix(" ")), 1) for _, ending in question.pairs]
    best, best_normalised = int(nats.argmax()), int((nats / lengths).argmax())
    return Score(best == question.right, best_normalised == question.right, float(nats[question.right]))


def evaluate(llm: LLM, name: str, questions: Sequence[Question], progress: Progress | None = None) -> Result:
    """Ask all questions of a task."""
    judge = Judge(llm.transformer.scorer(llm.transformer.context), llm.tokenizer)
    scores = []
    for index, question in enumerate(questions):
        scores.append(answer(judge, question))
        if progress is not None:
            progress(name, index + 1, len(questions))
    return Result(name, tuple(scores), questions[0].is_cloze)


def task_name(path: Path) -> str:
    """arc_easy of some/arc_easy.jsonl."""
    return path.name.split(".")[0]
