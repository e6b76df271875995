"""Scores by hand with a judge that knows what it thinks, and a task file from end to end."""

import math
from pathlib import Path

import pytest

from lutra.engine.likelihood import Likelihood
from lutra.engine.llm import LLM
from lutra.engine.readers import Question, read_questions
from lutra.engine.tasks import Result, Score, answer, evaluate, mean_and_error, task_name


class Opinion:
    """A judge whose likelihood of a continuation is written down."""

    def __init__(self, **nats: float):
        self.nats = nats

    def text(self, context: str, continuation: str) -> Likelihood:
        word = continuation.strip()
        return Likelihood(self.nats[word], self.nats[word] > -1, 1)


def question(*words: str, right: int = 0) -> Question:
    return Question(tuple(("context", " " + word) for word in words), right)


def test_the_likeliest_answers_and_the_likeliest_per_character() -> None:
    judge = Opinion(no=-2.0, certainly=-5.0)  # per character -1 and -0.56
    found = answer(judge, question("no", "certainly"))  # type: ignore[arg-type]
    assert found == Score(True, False, -2.0)
    assert answer(judge, question("no", "certainly", right=1)) == Score(False, True, -5.0)  # type: ignore[arg-type]


def test_a_single_pair_asks_whether_the_model_would_say_it() -> None:
    assert answer(Opinion(yes=-0.5), question("yes")).is_right  # type: ignore[arg-type]
    assert not answer(Opinion(no=-2.0), question("no")).is_right  # type: ignore[arg-type]


def test_results_by_hand() -> None:
    scores = tuple(Score(right, True, -math.log(4)) for right in (True, True, True, False))
    found = Result("arc", scores, False)
    assert found.accuracy == pytest.approx((0.75, 0.25)) and found.normalised == (1, 0) and found.perplexity is None
    cells = found.cells()
    assert (cells["accuracy"], cells["per character"], cells["perplexity"]) == (
        "75.00 ± 25.00 %",
        "100.00 ± 0.00 %",
        "-",
    )
    cloze = Result("lambada", scores, True)
    assert cloze.perplexity == pytest.approx(4) and cloze.normalised is None
    assert mean_and_error([1.0]) == (1.0, math.inf)


def test_name_of_a_file() -> None:
    assert task_name(Path("some/hellaswag_val.txt.bz2")) == "hellaswag_val"


def test_real_questions(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "copa.jsonl"
    path.write_text('{"query": "It rained, so", "choices": ["it was wet.", "it was dry."], "gold": 1}\n' * 3)
    told: list[tuple[str, int, int]] = []
    found = evaluate(llm, "copa", read_questions(path), lambda *step: told.append(step))
    assert told[-1] == ("copa", 3, 3) and len(set(found.scores)) == 1 and found.scores[0].nats < 0


def test_a_model_of_stories_knows_which_end_is_likelier(shared: Path) -> None:
    """Not the answers of a data set, but what even 260K parameters learnt."""
    llm = LLM.load(shared / "data/models/stories260K/stories260Ktok512.gguf", threads=1)
    asked = [
        Question((("There was a little", " girl named Lily."), ("There was a little", " Lily named girl.")), 0),
        Question((("The dog was sad and started to", " cry."), ("The dog was sad and started to", " was.")), 0),
    ]  # fmt: skip
    assert evaluate(llm, "stories", asked).accuracy[0] == 1
