"""The command line with real models: the one that comes with lutra, and a small GGUF of somebody else's."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lutra import cli


@pytest.fixture(scope="session")
def story_gguf(shared: Path) -> Path:
    """A Llama of 260,000 parameters, with its tokenizer."""
    return shared / "data" / "models" / "stories260K" / "stories260Ktok512.gguf"


def lutra(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lutra", *map(str, words)],
        cwd=cwd, env={**os.environ, **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )


def is_one_error(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_model_that_comes_along_writes_words(repository: Path) -> None:
    done = lutra("run", "--temperature", "0", "--max-tokens", "32", "Once upon a time", cwd=repository)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"[A-Za-z]+", done.stdout)) > 10


def test_the_same_seed_gives_the_same_text(story_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("7", "7", "8"):
        assert cli.exit_code(["run", "--seed", seed, "--max-tokens", "48", str(story_gguf), "Once upon a time"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_stats_count_the_tokens(story_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["run", "--stats", "--temperature", "0", "--max-tokens", "9", str(story_gguf), "Once"]) == 0
    assert re.search(r"prompt \d+ tokens, [\d.]+ tok/s · text 9 tokens, [\d.]+ tok/s", capsys.readouterr().err)


def test_verbose_describes_the_model_on_stderr(story_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["inspect", "model", str(story_gguf)]) == 0
    described = capsys.readouterr().out
    assert cli.exit_code(["run", "-v", "--max-tokens", "1", str(story_gguf), "Once"]) == 0
    assert described in capsys.readouterr().err


def test_perplexity_prints_a_number(story_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time there was a little girl. She had a red ball. She liked to play with it.")
    assert cli.exit_code(["perplexity", str(story_gguf), str(text)]) == 0
    assert 1 < float(capsys.readouterr().out.split()[1]) < 50


def test_compiled_kernels_can_be_inspected(story_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["run", "--max-tokens", "2", str(story_gguf), "Once"]) == 0
    capsys.readouterr()
    assert cli.exit_code(["inspect", "kernel"]) == 0
    name = capsys.readouterr().out.split()[0]
    assert cli.exit_code(["inspect", "kernel", name, "--stage", "ir"]) == 0
    assert capsys.readouterr().out.startswith(name)


def test_ctrl_c_while_generating_exits_130(story_gguf: Path, repository: Path) -> None:
    """The pipe is full all but 96 bytes, so that the text cannot end before the signal comes."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    read, write = os.pipe()
    size = fcntl.fcntl(write, getattr(fcntl, "F_SETPIPE_SZ", 1031), 4096)
    os.write(write, b" " * (size - 96))
    words = ["run", "--temperature", "0", "--max-tokens", "400", str(story_gguf), "Once upon a time"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lutra", *words], cwd=repository, stdout=write, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    os.close(write)
    deadline = time.monotonic() + 60
    while waiting_bytes(fcntl, termios, read) <= size - 96 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    with os.fdopen(read, "rb") as out:
        out.read()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(timeout=60)) == (b"\n", 130)


def waiting_bytes(fcntl, termios, pipe: int) -> int:  # type: ignore[no-untyped-def]
    """How many bytes wait in a pipe to be read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_reader_that_leaves_is_no_error(story_gguf: Path, repository: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lutra", "run", "--max-tokens", "400", str(story_gguf), "Once"],
        cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 1)


def test_a_file_cut_short_is_one_error(story_gguf: Path, repository: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(story_gguf.read_bytes()[:100_000])
    assert is_one_error(done := lutra("run", cut, "Once", cwd=repository)), done.stderr


def test_a_prompt_longer_than_the_context_is_one_error(story_gguf: Path, repository: Path) -> None:
    done = lutra("run", "--ctx", "16", story_gguf, "Once upon a time " * 20, cwd=repository)
    assert is_one_error(done) and "at most 16 tokens" in done.stderr


@pytest.mark.parametrize(("name", "value"), [("LUTRA_ISA", "sse17"), ("LUTRA_DEBUG", "assembly")])
def test_a_wrong_environment_variable_is_one_error(story_gguf: Path, repository: Path, name: str, value: str) -> None:
    done = lutra("run", story_gguf, "Once", cwd=repository, **{name: value})
    assert is_one_error(done) and name in done.stderr and value in done.stderr


def test_a_folder_that_is_no_model_is_one_error(repository: Path, tmp_path: Path) -> None:
    assert is_one_error(done := lutra("run", tmp_path, "Once", cwd=repository)), done.stderr


def test_chat_answers_each_line(story_gguf: Path, repository: Path) -> None:
    """The model has no chat template: it is given a plain transcript."""
    done = subprocess.run(
        [sys.executable, "-m", "lutra", "chat", "--max-tokens", "8", "--stats", str(story_gguf)],
        cwd=repository, input="hello\ngood bye\n", capture_output=True, text=True, timeout=120,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 2), done.stderr
    assert len(done.stdout) > 8
