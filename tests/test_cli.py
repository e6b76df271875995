"""The command line's own work: telling model from prompt, exit codes, text to stdout and the rest to stderr.

A model that repeats what it was given stands in for a real one; tests/test_run.py runs the real one.
"""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from lutra import cli, cli_hub, cli_input, cli_model, cli_show
from lutra.engine.params import SamplingParams
from lutra.errors import CapacityError, FileError, RequestError
from lutra.formats import catalog


class Parrot:
    """A model that says its prompt again, word by word."""

    stats = SimpleNamespace(
        prompt_tokens=10, cached_tokens=0, generated_tokens=5,
        prefill_s=0.1, decode_s=0.2, load_s=0.05, first_token_s=0.1,
    )

    def stream(self, prompt: str, params: Any) -> Iterator[str]:
        self.params = params
        yield from prompt.split()

    def chat(self, messages: list[dict[str, str]], params: Any) -> Iterator[str]:
        yield f"{len(messages)} messages, the last {messages[-1]['content']!r}"

    def describe(self) -> str:
        return "a parrot"

    def measure(self, text: str, context: int | None, progress: Any, protocol: str) -> str:
        progress("measuring", len(text), len(text))
        return f"{protocol} {context} {text}"


PARROT = Parrot()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Put the parrot where a model would be; collects what was asked to be loaded."""
    loads: list[tuple[Any, ...]] = []

    def load(*arguments: Any, **options: Any) -> Parrot:
        loads.append(arguments)
        return PARROT

    monkeypatch.setattr(cli, "load", load)
    return loads


def stdin_is(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# ---- which word is the model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "flag", "model", "prompt"),
    [
        (["Once upon a time"], None, None, "Once upon a time"),
        (["Once"], None, None, "Once"),
        (["-"], None, None, "-"),
        ([""], None, None, ""),
        (["m.gguf", "Once"], None, "m.gguf", "Once"),
        (["org/repo"], None, "org/repo", None),
        (["org/repo:Q4_0"], None, "org/repo:Q4_0", None),
        (["yes / no"], None, None, "yes / no"),
        (["a/b/c"], None, None, "a/b/c"),
        (["org/repo"], "m.gguf", "m.gguf", "org/repo"),
        ([], "m.gguf", "m.gguf", None),
        ([], None, None, None),
    ],
)
def test_split_words(words: list[str], flag: str | None, model: str | None, prompt: str | None) -> None:
    assert cli_input.split_words(words, flag) == (model, prompt)


def test_a_path_that_exists_is_a_model(tmp_path: Path) -> None:
    assert cli_input.split_words([str(tmp_path)], None) == (str(tmp_path), None)


@pytest.mark.parametrize(("words", "flag"), [(["a", "b", "c"], None), (["a", "b"], "m.gguf")])
def test_too_many_words_ask_for_quotes(words: list[str], flag: str | None) -> None:
    with pytest.raises(click.UsageError, match="put the prompt in quotes"):
        cli_input.split_words(words, flag)


def test_no_name_is_the_default_model() -> None:
    assert cli_model.resolve(None) is None


def test_an_existing_path_is_itself(tmp_path: Path) -> None:
    assert cli_model.resolve(str(tmp_path)) == str(tmp_path)


def test_a_shipped_model_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tales").mkdir()
    monkeypatch.setattr(cli_model, "SHIPPED", tmp_path)
    assert cli_model.resolve("tales") == str(tmp_path / "tales")


@pytest.mark.parametrize(
    "name", ["nothere", "no/such.gguf", "/no/such/folder", "../..x/y", "../x", "./x", "Once upon", "a/b:c/d"]
)
def test_a_name_of_nothing_is_an_error(name: str) -> None:
    with pytest.raises(FileError, match="expected a model, got .* give a .gguf file"):
        cli_model.resolve(name)


# ---- the hub --------------------------------------------------------------------------------------------------------


def hub_with(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> dict[str, Any]:
    """Let the hub be a folder with these files; returns what it was asked for."""
    call: dict[str, Any] = {}

    def snapshot_download(repo: str, **options: Any) -> str:
        call.update(repo=repo, **options)
        with options["tqdm_class"](total=2, desc="Fetching", name="of the hub") as bar:
            bar.update(1)
            bar.set_description("still")
            bar.total = 3
            bar.refresh()
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        return str(folder)

    monkeypatch.setattr(cli_hub, "snapshot_download", snapshot_download)
    return call


def test_a_repository_gives_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = hub_with(monkeypatch, tmp_path, "config.json", "model.safetensors")
    assert cli_model.resolve("org/repo") == str(tmp_path)
    assert call["repo"] == "org/repo" and "*.safetensors" in call["allow_patterns"]
    assert not any("gguf" in pattern for pattern in call["allow_patterns"])


def test_a_part_of_a_name_gives_one_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = hub_with(monkeypatch, tmp_path, "model-Q4_0.gguf")
    assert cli_model.resolve("org/repo:Q4_0") == str(tmp_path / "model-Q4_0.gguf")
    assert call["allow_patterns"] == ["*Q4_0*.gguf"]


def test_two_matching_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, tmp_path, "a-Q4_0.gguf", "b-Q4_0.gguf")
    with pytest.raises(FileError, match="found a-Q4_0.gguf, b-Q4_0.gguf; say more of it"):
        cli_hub.fetch("org/repo", "Q4_0")


def test_no_matching_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, tmp_path)
    with pytest.raises(FileError, match="found none"):
        cli_hub.fetch("org/repo", "Q4_0")


def test_a_repository_of_gguf_files_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, tmp_path)
    with pytest.raises(FileError, match="org/repo:Q4_0"):
        cli_hub.fetch("org/repo")


def test_no_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def snapshot_download(repo: str, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(cli_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileError, match=r"could not fetch org/repo .*\(ConnectionError: no route to host\); check"):
        cli_hub.fetch("org/repo")
    assert capsys.readouterr() == ("", "")


# ---- commands -------------------------------------------------------------------------------------------------------


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
    assert cli_show.stats_line(stats).startswith("prompt 10 tokens (8 cached), 20.0 tok/s")


def test_a_text_without_decode_steps_has_no_rate() -> None:
    stats = SimpleNamespace(**{**vars(PARROT.stats), "generated_tokens": 1, "decode_s": 0.0})
    assert "text 1 tokens, - tok/s" in cli_show.stats_line(stats)


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


def test_text_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_input, "MAX_BYTES", 4)
    assert cli_input.read_text(io.BytesIO(b"1234"), "it") == "1234"
    with pytest.raises(FileError, match="it: expected at most 4 bytes of text, got more"):
        cli_input.read_text(io.BytesIO(b"12345"), "it")


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
    monkeypatch.setattr(cli, "read_message", lambda: next(lines))
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

    assert cli.answer(Interrupted(), [], None) == "half"  # type: ignore[arg-type]
    assert capsys.readouterr().out == "half\n"


def test_perplexity(asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("12345", "utf-8")
    assert cli.exit_code(["perplexity", "m.gguf", str(tmp_path / "text.txt")]) == 0
    assert capsys.readouterr().out == "windows None 12345\n"
    (tmp_path / "rows.jsonl").write_text('{"text": "1"}\n{"text": "2"}\n', "utf-8")
    words = ["perplexity", "m.gguf", str(tmp_path / "rows.jsonl"), "--protocol", "gptq", "--context", "64"]
    assert cli.exit_code(words) == 0
    assert capsys.readouterr().out == "gptq 64 1\n\n2\n"


def test_pack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lutra.model.pack

    asked: list[tuple[Any, ...]] = []

    def pack(*arguments: Any) -> str:
        asked.append(arguments[:3])
        return "written"

    monkeypatch.setattr(lutra.model.pack, "pack", pack)
    assert cli.exit_code(["pack", str(tmp_path), "m.lutra", "--order", "lut"]) == 0
    assert capsys.readouterr() == ("written\n", "") and asked == [(str(tmp_path), "m.lutra", "lut")]
    assert cli.exit_code(["pack", str(tmp_path), str(tmp_path)]) == 2
    assert "directory" in capsys.readouterr().err


def test_tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import lutra.model.tune

    asked: list[Any] = []

    class Finding:
        def cells(self) -> dict[str, str]:
            return {"kernel": "mad", "gain": "7 %"}

    def tune(kinds: Any, threads: int, progress: Any) -> list[Finding]:
        asked.append((len(kinds), kinds[0].name, kinds[-1].name, threads))
        return [Finding()]

    monkeypatch.setattr(lutra.model.tune, "tune", tune)
    line = ["tune", "--shape", "tiny", "--format", "planes4-g32", "--head", "int8-g32", "--threads", "1"]
    assert cli.exit_code(line) == 0
    out = capsys.readouterr().out
    assert "| mad    |  7 % |" in out and "planes4-g32 512x256: mad" in out and "texts stay the same" in out
    assert asked == [(5, "planes4-g32", "int8-g32", 1)]
    for wrong, why in (("--shape=x", "a shape of tiny"), ("--format=x", "name of a format"), (".", "got both")):
        assert cli.exit_code(["tune", *line[1:], wrong]) == 2
        assert why in capsys.readouterr().err
    assert len(asked) == 1


def test_inspect_model(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["inspect", "model"]) == 0
    assert capsys.readouterr().out == "a parrot\n"


def test_inspect_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["inspect", "format", "ternary"]) == 0
    assert capsys.readouterr().out.startswith("ternary ")
    assert cli.exit_code(["inspect", "format"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(catalog.SOURCES)


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "chat", "inspect", "doctor", "bench", "tune", "perplexity", "train"))


def test_train_without_torch_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.exit_code(["train", "--anything"]) == 2
    assert "pip install 'lutra[train]'" in capsys.readouterr().err


# ---- exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["run", "a", "b", "c"],
        ["run", "--top-p", "1.5", "hi"],
        ["run", "--temperature", "-1", "hi"],
        ["run", "--threads", "0", "hi"],
        ["run", "--prefill-threads", "0", "hi"],
        ["run", "--nope", "hi"],
        ["run", "-m", "nothere", "hi"],
        ["chat", "nothere"],
        ["inspect", "model", "nothere"],
        ["inspect", "format", "nothere"],
        ["perplexity", "m.gguf", "no such file"],
        ["bench", "--prompt", "0"],
    ],
    ids=" ".join,
)
def test_what_a_user_can_cause_is_one_error_and_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err


@pytest.mark.parametrize("error", [CapacityError, FileError, RequestError])
def test_an_error_of_the_engine_is_exit_2(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def stream(self: Parrot, prompt: str, params: Any) -> Iterator[str]:
        yield "Onc"
        raise error("expected this, got that; do so")

    monkeypatch.setattr(Parrot, "stream", stream)
    assert cli.exit_code(["run", "hi"]) == 2
    assert capsys.readouterr().err == "error: expected this, got that; do so\n"


def test_ctrl_c_ends_the_line_and_exits_130(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stream(self: Parrot, prompt: str, params: Any) -> Iterator[str]:
        yield "Onc"
        raise KeyboardInterrupt

    monkeypatch.setattr(Parrot, "stream", stream)
    assert cli.exit_code(["run", "hi"]) == 130
    assert capsys.readouterr() == ("Onc", "\n")


def test_a_closed_pipe_is_quiet(repository: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lutra", "--help"], stdout=write, stderr=subprocess.PIPE, cwd=repository
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(("words", "code"), [(["run"], 2), (["chat"], 0), (["run", "hi"], 0)])
def test_closed_streams_are_empty_ones(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.exit_code(words) == code


# ---- progress -------------------------------------------------------------------------------------------------------


def test_progress_is_shown_only_on_a_terminal_and_only_when_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    with cli_show.LoadProgress() as progress:
        progress("reading", 1, 10)
        assert progress.bar is None                     # quick
        progress.started_s -= 60
        progress("reading", 2, 10)
        assert progress.bar is None                     # slow, no terminal
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        progress("reading", 3, 10)
        assert progress.bar is not None and progress.bar.tasks[0].completed == 3
    assert progress.bar.finished or not progress.bar.live.is_started
