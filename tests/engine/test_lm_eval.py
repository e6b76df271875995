"""The harness's three kinds of request, by hand and through the package where it is installed (pip install lm_eval)."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lutra.engine import lm_eval as ours
from lutra.engine.llm import LLM
from lutra.engine.perplexity import Window, negative_log_likelihoods
from lutra.errors import RequestError

TEXT = "It was the best of times, it was the worst of times. "


@pytest.fixture
def answers(gguf: Path) -> ours.Answers:
    return ours.Answers(LLM.load(gguf, threads=1, context=32))


def test_likelihoods_add_up_to_those_of_the_text(answers: ours.Answers) -> None:
    whole, front = (next(answers.likelihoods([("", text)]))[0] for text in ("It was the best", "It was"))
    rest = next(answers.likelihoods([("It was", " the best")]))[0]
    assert whole == pytest.approx(front + rest, rel=1e-6)


def test_whole_texts_are_scored_once_in_windows(answers: ours.Answers) -> None:
    tokenizer, long = answers.llm.tokenizer, TEXT * 2
    tokens = [tokenizer.bos_id, *tokenizer.encode(long, add_bos=False)]
    assert 32 < len(tokens) < 94
    scorer = answers.llm.transformer.scorer(32)
    windows = [Window(tokens[start : start + 32]) for start in (0, 31, 62)]
    wanted = -sum(sum(negative_log_likelihoods(scorer, window)) for window in windows if len(window.tokens) > 1)
    assert list(answers.rolling([long, ""])) == [pytest.approx(wanted), 0]
    assert sum(window.num_scored for window in windows if len(window.tokens) > 1) == len(tokens) - 1
    pair = next(answers.likelihoods([("It was", " the best")]))  # the cache of windows is not taken for its own
    assert pair == next(ours.Answers(answers.llm).likelihoods([("It was", " the best")]))


def test_generation_ends_at_a_stop(answers: ours.Answers) -> None:
    [text] = answers.generated([("It was", {"max_gen_toks": 8})])
    assert text == next(answers.generated([("It was", {"max_gen_toks": 8, "until": []})]))
    stop = text[3:5]
    assert next(answers.generated([("It was", {"max_gen_toks": 8, "until": [stop]})])) == text[: text.index(stop)]
    assert len(next(answers.generated([(TEXT * 9, {"max_gen_toks": 8})]))) > 0  # longer than the context


def test_settings_of_a_task() -> None:
    assert ours.sampling({"until": ["\n\n", ""], "max_gen_toks": 3}).stop == ("\n\n",)
    assert ours.sampling({"until": "x"}).stop == ("x",) and ours.sampling({}).max_tokens == ours.NUM_TOKENS
    assert ours.sampling({"temperature": 0.0}).is_greedy and ours.sampling({"do_sample": False}).is_greedy
    assert ours.sampling({"do_sample": False, "temperature": 0.7}).is_greedy
    chosen = ours.sampling({"do_sample": True, "temperature": 0.7, "top_p": 0.5})
    assert (chosen.temperature, chosen.top_p) == (0.7, 0.5)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RequestError, match="pip install 'lutra\\[eval\\]'"):
        ours.model_class.__wrapped__()  # what is cached may be the class


@pytest.fixture
def harness(gguf: Path) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("needs the package lm_eval: pip install 'lutra[eval]'")
    return ours.model_class()(LLM.load(gguf, threads=1, context=64))


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_the_class_answers_the_harness(harness: Any) -> None:
    from lm_eval.api.model import LM

    assert isinstance(harness, LM)
    likelihoods = harness.loglikelihood([request("It was", " so"), request("It was", " the")])
    assert [type(nats) for nats, _ in likelihoods] == [float, float] and all(nats < 0 for nats, _ in likelihoods)
    assert harness.loglikelihood_rolling([request(TEXT)])[0] < 0
    assert isinstance(harness.generate_until([request("It was", {"until": ["\n"], "max_gen_toks": 4})])[0], str)


def test_the_harness_and_our_tasks_agree(harness: Any, tmp_path: Path) -> None:
    """A task of the harness over a local file gives the accuracies that tasks.py gives."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask

    from lutra.engine.readers import read_questions
    from lutra.engine.tasks import evaluate

    path = tmp_path / "copa.jsonl"
    words = ["wet", "dry", "certainly never wet", "so", "on and on"]
    lines = [
        f'{{"query": "It rained, so {a}", "choices": ["it was {b}.", "it was {a}."], "gold": {i % 2}}}'
        for i, (a, b) in enumerate(zip(words, words[1:] + words[:1], strict=True))
    ]
    path.write_text("\n".join(lines) + "\n")
    task = ConfigurableTask(config={
        "task": "local", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    })  # fmt: skip
    found = lm_eval.evaluate(lm=harness, task_dict={"local": task}, bootstrap_iters=0)["results"]["local"]
    result = evaluate(harness.answers.llm, "local", read_questions(path))
    assert result.normalised is not None
    assert (found["acc,none"], found["acc_norm,none"]) == (result.accuracy[0], result.normalised[0])
