"""`lutra run` and `lutra chat`: text to stdout and the rest to stderr, the prompt from stdin, a conversation."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lutra import cli
from lutra.cli import run, show
from lutra.engine.params import SamplingParams
from lutra.errors import CapacityError
from tests.cli.parrot import PARROT, Parrot, stdin_is


def test_run_prints_the_text_and_nothing_else_to_stdout(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["run", "m.gguf", "Once upon a time", "--threads", "2", "--ctx", "64"]) == 0
    assert capsys.readouterr() == ("Onceuponatime\n", "")
    assert asked == [("m.gguf", 2, 64, False, "f16", None, None)]


def test_the_prompt_may_have_threads_of_its_own(asked: list[Any]) -> None:
    assert cli.exit_code(["run", "m.gguf", "Hi", "--threads", "2", "--prefill-threads", "3"]) == 0
    assert asked == [("m.gguf", 2, None, False, "f16", None, 3)]


def test_stats_go_to_stderr(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["run", "--stats", "Once upon"]) == 0
    out, err = capsys.readouterr()
    assert out == "Onceupon\n"
    assert err == (
        "prompt 10 tokens, 100.0 tok/s · text 5 tokens, 20.0 tok/s · first token 100 ms · load 50 ms\n"
    )  # 4 steps of decode give tokens 2 to 5


def test_cached_tokens_do_not_count_as_prefill() -> None:
    stats = SimpleNamespace(**{**vars(PARROT.stats), "cached_tokens": 8})
    assert show.stats_line(stats).startswith("prompt 10 tokens (8 cached), 20.0 tok/s")


def test_a_text_without_decode_steps_has_no_rate() -> None:
    stats = SimpleNamespace(**{**vars(PARROT.stats), "generated_tokens": 1, "decode_s": 0.0})
    assert "text 1 tokens, - tok/s" in show.stats_line(stats)


def test_flags_reach_the_sampler_and_the_rest_keep_its_defaults(asked: list[Any]) -> None:
    assert cli.exit_code("run --temperature 0 --top-k -1 --min-p 0.1 --max-tokens 3 hi".split()) == 0
    assert PARROT.params == SamplingParams(temperature=0, top_k=-1, min_p=0.1, max_tokens=3)
    assert cli.exit_code("run --top-p 0.9 --seed 7 hi".split()) == 0
    assert PARROT.params == SamplingParams(top_p=0.9, seed=7)


@pytest.mark.parametrize("words", [["run", "-"], ["run"], ["run", "org/repo"], ["run", "-m", "m.gguf", "-"]])
def test_a_prompt_from_stdin(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    stdin_is(monkeypatch, "Éin mal\n".encode())
    assert cli.exit_code(words) == 0
    assert capsys.readouterr().out == "Éinmal\n"


@pytest.mark.parametrize(("data", "message"), [(b"", "got nothing"), (b"\n", "got nothing"), (b"a\xff", "byte 1")])
def test_bad_stdin(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: bytes, message: str
) -> None:
    stdin_is(monkeypatch, data)
    assert cli.exit_code(["run", "-"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("error: ") and message in err


def test_a_chat_takes_any_bytes(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin_is(monkeypatch, b"a\xff\n")
    assert cli.exit_code(["chat"]) == 0
    assert capsys.readouterr().out == "1 messages, the last 'a\ufffd'\n"


def test_chat_remembers_and_forgets(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin_is(monkeypatch, b"one\ntwo\n\n/clear\nthree\n")
    assert cli.exit_code(["chat", "--system", "be brief", "m.gguf"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 messages, the last 'one'", "4 messages, the last 'two'", "2 messages, the last 'three'",
    ]


@pytest.mark.parametrize(("on_terminal", "code"), [(True, 0), (False, 2)])
def test_a_chat_that_outgrows_its_context_can_go_on_at_a_terminal(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_terminal: bool, code: int
) -> None:
    def chat(self: Parrot, messages: list[dict[str, str]], params: Any) -> Iterator[str]:
        if len(messages) > 1:
            raise CapacityError("expected less; shorten it")
        yield messages[0]["content"]

    lines = iter(["one", "two", "/clear", "three", None])
    monkeypatch.setattr(Parrot, "chat", chat)
    monkeypatch.setattr(run, "read_message", lambda: next(lines))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: on_terminal))
    assert cli.exit_code(["chat"]) == code
    out, err = capsys.readouterr()
    assert out.split() == (["one", "three"] if on_terminal else ["one"])
    assert "expected less; shorten it" in err and ("/clear" in err) == on_terminal


def test_ctrl_c_in_a_chat_keeps_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Parrot):
        def chat(self, messages: list[dict[str, str]], params: Any) -> Iterator[str]:
            yield "half"
            raise KeyboardInterrupt

    assert run.answer(Interrupted(), [], None) == "half"  # type: ignore[arg-type]
    assert capsys.readouterr().out == "half\n"


def test_progress_is_shown_only_on_a_terminal_and_only_when_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    with show.LoadProgress() as progress:
        progress("reading", 1, 10)
        assert progress.bar is None                     # quick
        progress.started_s -= 60
        progress("reading", 2, 10)
        assert progress.bar is None                     # slow, no terminal
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        progress("reading", 3, 10)
        assert progress.bar is not None and progress.bar.tasks[0].completed == 3
    assert progress.bar.finished or not progress.bar.live.is_started


def test_progress_in_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with show.LoadProgress(lines=True) as progress:
        progress("layer 1", 1, 10)
        assert capsys.readouterr().err == ""            # quick
        progress.started_s -= 60
        progress("layer 2", 2, 10)
        progress("layer 3", 3, 10)                      # too soon after the last line
        progress.said_s -= 60
        progress("layer 4", 4, 10)
        assert progress.bar is None
    assert capsys.readouterr().err == "layer 2, 2 of 10\nlayer 4, 4 of 10\n"
