"""Requests that mean nothing, a hostile environment, files that may not be lost: one line and exit code 2."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lutra import cli
from tests.cli.spoilt import assert_one_error, put, run, spoilt_gguf
from tests.files.make_models import tiny_hf, tiny_llama_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "model.gguf")


REQUESTS = {
    "a prompt longer than the context": (["--ctx", "8", "a prompt of many words"], "at most 8 tokens, got"),
    "more context than the model's": (["--ctx", "257", "Hi"], "1 to 256 tokens, got 257"),
    "absurd context": (["--ctx", str(10**15), "Hi"], "1 to 256 tokens"),
    "absurd threads": (["--threads", "100000", "Hi"], "1 to 1024 threads, got 100000"),
    "an absurd seed": (["--seed", str(1 << 70), "Hi"], "seed"),
    "temperature no number": (["--temperature", "nan", "Hi"], "temperature"),
    "temperature infinite": (["--temperature", "inf", "Hi"], "temperature"),
    "no tokens": (["--max-tokens", "0", "Hi"], "max_tokens"),
    "top-k below -1": (["--top-k", "-5", "Hi"], "top_k"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(model: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    words, fragment = REQUESTS[case]
    assert_one_error(cli.exit_code(["run", "--temperature", "0", "-m", str(model), *words]), *capsys.readouterr(),
                     fragment)  # fmt: skip


def test_an_empty_prompt_begins_with_bos_and_is_refused_without(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(run(model, "")) == 0
    capsys.readouterr()
    path = spoilt_gguf(tmp_path / "model.gguf", put("tokenizer.ggml.add_bos_token", False))
    assert_one_error(cli.exit_code(run(path, "")), *capsys.readouterr(), "at least one token, got none")


def test_a_context_that_no_memory_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file claims a context of 16 million tokens, in 60 thousand bytes per token of keys and values."""
    path = spoilt_gguf(tmp_path / "model.gguf", put("llama.context_length", 1 << 24))
    from lutra.model import buffers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "_memory_bytes", lambda: 1 << 30)
        assert_one_error(cli.exit_code(run(path, "--ctx", str(1 << 24), "Hi")), *capsys.readouterr(), "4.3 GB", "--ctx")


def test_no_more_threads_to_be_had(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("lutra.compiler.launch.threading.Thread.start", start)
    assert_one_error(cli.exit_code(run(model, "--threads", "9", "Hi")), *capsys.readouterr(), "--threads")


@pytest.mark.parametrize("text", ["", "x"])
def test_perplexity_of_nothing(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "text.txt").write_text(text)
    words = ["perplexity", str(model), str(tmp_path / "text.txt"), *(["--ctx", "1"] if text else [])]
    assert_one_error(cli.exit_code(words), *capsys.readouterr(), "at least ")


def test_formats_and_shapes_of_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_error(cli.exit_code(["bench", "--shape", "9b"]), *capsys.readouterr(), "9b")
    words = ["bench", "--shape", "tiny", "--format", "planes9"]
    assert_one_error(cli.exit_code(words), *capsys.readouterr(), "planes9")


def in_a_process(
    repository: Path, words: list[str], stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "lutra", *words],
        cwd=repository, env={**os.environ, **environment}, input=stdin, capture_output=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LUTRA_ISA", "sse17"),
        ("LUTRA_DEBUG", "assembly"),
        ("LUTRA_CACHE", "/dev/null/kernels"),   # below a file
        ("LUTRA_CACHE", "/dev/null"),           # a file
        ("LUTRA_CACHE", "/proc"),               # a folder in which nobody can make anything
    ],
)  # fmt: skip
def test_environment(repository: Path, model: Path, name: str, value: str) -> None:
    done = in_a_process(repository, run(model), **{name: value})
    assert_one_error(done.returncode, done.stdout.decode(), done.stderr.decode(), name, value)


@pytest.mark.parametrize("stdin", [b"\xff\xfe", b"ab\x80", b"\xed\xa0\x80"])
def test_a_prompt_that_is_no_text(repository: Path, model: Path, stdin: bytes) -> None:
    done = in_a_process(repository, run(model, "-"), stdin)
    assert_one_error(done.returncode, done.stdout.decode(), done.stderr.decode(), "UTF-8")



WRITING = {
    "quantise a folder into itself": (["quantize", "hf", "hf/model.safetensors", "--format", "planes4-g32"], "its own"),
    "quantise a folder into one more file of it": (
        ["quantize", "hf", "hf/new.safetensors", "--format", "planes4-g32"], "its own",
    ),
    "quantise a file onto itself": (
        ["quantize", "small.safetensors", "./small.safetensors", "--format", "planes4-g32"], "its own",
    ),
    "export a file onto itself": (["export", "model.gguf", "model.gguf"], "its own"),
    "export to another kind of file": (["export", "model.gguf", "small.safetensors"], "ends in .gguf"),
    "a format, and a condition that chooses": (
        ["quantize", "hf", "out.safetensors", "--format", "planes4-g32", "--bpw", "4"], "got both",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITING)
def test_nothing_that_is_there_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    words, fragment = WRITING[case]
    monkeypatch.chdir(tmp_path)
    tiny_hf(tmp_path / "hf")
    tiny_llama_gguf(tmp_path / "model.gguf")
    assert cli.exit_code(["quantize", "hf", "small.safetensors", "--format", "planes4-g32"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    code, (out, err) = cli.exit_code(words), capsys.readouterr()
    assert_one_error(code, out, err.replace("see: lutra quantize --help\n", ""), fragment)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_a_full_disk_while_exporting(repository: Path, tmp_path: Path, model: Path) -> None:
    """Half the file fits; what is left is what was there."""
    half = model.stat().st_size // 2
    done = subprocess.run(
        [sys.executable, "-m", "lutra", "export", str(model), str(tmp_path / "out.gguf")],
        cwd=repository, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)),
    )  # fmt: skip
    assert_one_error(done.returncode, done.stdout, done.stderr, "out.gguf", "room for the model")
    assert "None" not in done.stderr and not list(tmp_path.iterdir())
