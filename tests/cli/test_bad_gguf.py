"""GGUF files that are broken or hostile: one line that says what to do, exit code 2, no traceback.

Each row of a table spoils one thing of a model that runs and names what the message must say.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lutra import cli
from tests.cli.spoilt import Spoil, assert_one_error, drop, nan_scale, put, run, spoilt_gguf, tensor
from tests.files import gguf_writer, make_models
from tests.files.gguf_writer import description, header, pad
from tests.files.make_models import tiny_llama_gguf

TOKENS = make_models.vocabulary()
BAD_GGUF: dict[str, tuple[Spoil, str]] = {
    "missing matrix": (drop("blk.1.ffn_up.weight"), "layers.1.up"),
    "missing norm": (drop("output_norm.weight"), "final_norm"),
    "missing embedding": (drop("token_embd.weight"), "embed"),
    "extra bias": (tensor("blk.0.ffn_gate.bias", 160), "blk.0.ffn_gate.bias"),
    "extra layer": (tensor("blk.2.attn_norm.weight", 64), "blk.2.attn_norm.weight"),
    "extra norm of nobody's": (tensor("blk.0.post_attention_norm.weight", 64), "blk.0.post_attention_norm.weight"),
    "a layer too few": (put("llama.block_count", 1), "blk.1."),
    "a layer too many": (put("llama.block_count", 3), "layers.2."),
    "shape against the config": (tensor("blk.0.ffn_up.weight", 128, 64), "(160, 64)"),
    "a vector for a matrix": (tensor("blk.0.ffn_up.weight", 64), "(160, 64)"),
    "a matrix for a norm": (tensor("blk.0.attn_norm.weight", 1, 64), "(64,)"),
    "another width by the config": (put("llama.embedding_length", 128), "use a model"),
    "another ffn width by the config": (put("llama.feed_forward_length", 128), "should have shape"),
    "absurd width": (put("llama.embedding_length", 1 << 31), "embedding_length"),
    "width 0": (put("llama.embedding_length", 0), "embedding_length"),
    "negative width": (put("llama.embedding_length", -64), "embedding_length"),
    "width in words": (put("llama.embedding_length", "wide"), "embedding_length"),
    "absurd layers": (put("llama.block_count", 1 << 30), "block_count"),
    "heads that do not divide": (put("llama.attention.head_count", 7), "head"),
    "no heads": (put("llama.attention.head_count", 0), "head"),
    "more kv heads than heads": (put("llama.attention.head_count_kv", 8), "head_count_kv"),
    "epsilon no number": (put("llama.attention.layer_norm_rms_epsilon", float("nan")), "epsilon"),
    "theta infinite": (put("llama.rope.freq_base", float("inf")), "freq_base"),
    "unknown architecture": (put("general.architecture", "mamba"), "mamba"),
    "no architecture": (drop("general.architecture"), "general.architecture"),
    "mixture of experts": (put("llama.expert_count", 8), "expert_count"),
    "no vocabulary": (drop("tokenizer.ggml.tokens"), "vocab_size"),
    "vocabulary smaller than the embedding": (put("tokenizer.ggml.tokens", TOKENS[:200]), "tokenizer.ggml."),
    "vocabulary larger than the embedding": (put("tokenizer.ggml.tokens", [*TOKENS, "more"]), "tokenizer.ggml."),
    "embedding smaller than the vocabulary": (tensor("token_embd.weight", 200, 64), "token_embd.weight"),
    "vocabulary of numbers": (put("tokenizer.ggml.tokens", [1, 2, 3]), "tokens"),
    "unknown tokenizer": (put("tokenizer.ggml.model", "t5"), "t5"),
    "unknown pre-tokenizer": (put("tokenizer.ggml.pre", "nobody's"), "nobody's"),
    "merges that do not fit": (put("tokenizer.ggml.merges", ["q zzz"]), "zzz"),
    "bos outside the vocabulary": (put("tokenizer.ggml.bos_token_id", 5000), "bos_token_id"),
    "a factor too few": (tensor("rope_freqs.weight", 3, fill=1.0), "rope_freqs"),
    "factors of zero": (tensor("rope_freqs.weight", 8), "rope_freqs"),
    "one of two parts": (put("split.count", 2), "split"),
    "logits no numbers": (tensor("output_norm.weight", 64, fill=float("nan")), "NaN"),
    "weights infinite": (tensor("blk.0.ffn_down.weight", 64, 160, fill=float("inf")), "NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, fragment = BAD_GGUF[case]
    path = spoilt_gguf(tmp_path / "model.gguf", spoil)
    assert_one_error(cli.exit_code(run(path)), *capsys.readouterr(), fragment)


def test_a_scale_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spoilt_gguf(tmp_path / "model.gguf", nan_scale, "Q4_0")
    assert_one_error(cli.exit_code(run(path)), *capsys.readouterr(), "blk.1.ffn_up.weight", "finite")


@pytest.mark.parametrize("size", [0, 3, 4, 20, 24, 100, 5000, -1, -5000])
def test_gguf_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    path = tiny_llama_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:size])
    assert_one_error(cli.exit_code(run(path)), *capsys.readouterr(), "model.gguf", ";")


HUGE = 1 << 60
HUGE_COUNT = HUGE.to_bytes(8, "little")
PAIR = gguf_writer.string("general.architecture") + b"\x08\0\0\0" + gguf_writer.string("llama")
LYING_GGUF = {
    "another magic": b"GGML" + bytes(60),
    "another version": header(b"", [], 0, version=9),
    "tensors without end": b"GGUF\x03\0\0\0" + HUGE_COUNT + bytes(64),
    "key-values without end": b"GGUF\x03\0\0\0" + bytes(8) + HUGE_COUNT + bytes(64),
    "a string without end": header(HUGE_COUNT, [], 1) + bytes(64),
    "an array without end": header(gguf_writer.string("a") + b"\x09\0\0\0\x04\0\0\0" + HUGE_COUNT, [], 1),
    "an array of arrays": header(gguf_writer.string("a") + b"\x09\0\0\0\x09\0\0\0" + bytes(8), [], 1),
    "a value of no type": header(gguf_writer.string("a") + b"\x63\0\0\0" + bytes(8), [], 1),
    "a key that is no text": header(gguf_writer.string(b"\xff\xfe") + bytes(16), [], 1),
    "a key twice": header(PAIR + PAIR, [], 2),
    "an unknown tensor type": header(PAIR, [description("output.weight", (32, 4), 99, 0)], 1),
    "a removed tensor type": header(PAIR, [description("output.weight", (32, 4), 4, 0)], 1),
    "sizes whose product overflows": header(PAIR, [description("output.weight", (1 << 40, 1 << 40), 0, 0)], 1),
    "a size of 0": header(PAIR, [description("output.weight", (0, 4), 0, 0)], 1),
    "too many dimensions": header(PAIR, [description("output.weight", (1,) * 9, 0, 0)], 1),
    "data beyond the end": header(PAIR, [description("output.weight", (8, 8), 0, HUGE)], 1),
    "an odd offset": header(PAIR, [description("output.weight", (8, 8), 0, 3)], 1),
    "blocks that K does not fill": header(PAIR, [description("output.weight", (33, 4), 2, 0)], 1),
    "tensors on top of each other": pad(
        header(PAIR, [description(f"blk.{i}.ffn_up.weight", (8, 8), 0, 32 * i) for i in (0, 1)], 1), 32
    ) + bytes(1024),
}  # fmt: skip


@pytest.mark.parametrize("case", LYING_GGUF)
def test_gguf_headers_that_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(LYING_GGUF[case])
    assert_one_error(cli.exit_code(run(path)), *capsys.readouterr(), "model.gguf", "expected ", ", got ", "; ")


def test_lying_headers_allocate_next_to_nothing(repository: Path, tmp_path: Path) -> None:
    """With 3 GB of address space, NumPy and LLVM included, the error is still about the file."""
    for case in ("an array without end", "sizes whose product overflows", "data beyond the end"):
        path = tmp_path / "model.gguf"
        path.write_bytes(LYING_GGUF[case])
        done = subprocess.run(
            [sys.executable, "-m", "lutra", *run(path)], cwd=repository, capture_output=True, text=True, timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
        )  # fmt: skip
        assert_one_error(done.returncode, done.stdout, done.stderr, "model.gguf")
