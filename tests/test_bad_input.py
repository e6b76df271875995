"""Input that is broken or hostile, through the command line: one line that says what to do, exit code 2, no traceback.

Each row of the tables spoils one thing of a model that runs (test_the_models_run_unspoilt) and names what the message
must say.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra import cli
from tests.files import gguf_writer, make_models
from tests.files.gguf_writer import description, header, pad, write_gguf
from tests.files.make_models import tiny_hf, tiny_llama_gguf
from tests.files.safetensors_writer import bfloat16, write_raw, write_safetensors

RUN = ["--max-tokens", "2", "--threads", "1", "--temperature", "0"]


def run(model: Path, *words: str) -> list[str]:
    return ["run", *RUN, "-m", str(model), *(words or ("Hi",))]


def assert_one_error(code: int, out: str, err: str, *fragments: str) -> None:
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    assert len(err) < 1000
    for fragment in fragments:
        assert fragment in err, err


# ---- GGUF -----------------------------------------------------------------------------------------------------------

Tensors = dict[str, tuple[str, np.ndarray]]  # by name: type and values
Spoil = Callable[[dict[str, Any], Tensors], Any]


def gguf_parts(quant: str = "F32") -> tuple[dict[str, Any], Tensors]:
    """Metadata and tensors of a model that runs."""
    rng, sizes = np.random.default_rng(0), make_models.Sizes()
    tensors: Tensors = {}
    for name, values in make_models.random_state(rng, "llama", sizes).items():
        if quant != "F32" and "_proj" in name:
            tensors[make_models.gguf_name(name)] = quant, gguf_writer.random_blocks(rng, quant, *values.shape)
        else:
            tensors[make_models.gguf_name(name)] = "F32", values
    return make_models.gguf_metadata("llama", sizes), tensors


def spoilt_gguf(path: Path, spoil: Spoil, quant: str = "F32") -> Path:
    metadata, tensors = gguf_parts(quant)
    spoil(metadata, tensors)
    return write_gguf(path, metadata, [(name, kind, values) for name, (kind, values) in tensors.items()])


def put(key: str, value: Any) -> Spoil:
    return lambda metadata, _: metadata.__setitem__(key, value)


def drop(key: str) -> Spoil:
    return lambda metadata, tensors: tensors.pop(key) if key in tensors else metadata.pop(key)


def tensor(name: str, *shape: int, fill: float = 0.0) -> Spoil:
    return lambda _, tensors: tensors.__setitem__(name, ("F32", np.full(shape, fill, np.float32)))


def nan_scale(_: dict[str, Any], tensors: Tensors) -> None:
    tensors["blk.1.ffn_up.weight"][1][7, 1, :2] = np.float16("nan").reshape(1).view(np.uint8)


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


# ---- Hugging Face folders -------------------------------------------------------------------------------------------

UP = "model.layers.1.mlp.up_proj.weight"


def set_config(**change: Any) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in change.items():
            config[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def write(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def state(**change: np.ndarray | None) -> Callable[[Path], Any]:
    """Write the weights of seed 0 anew with some changed; None leaves one out, and _ stands for a dot in names."""

    def spoil(folder: Path) -> None:
        weights: dict[str, Any] = make_models.random_state(np.random.default_rng(0), "llama", make_models.Sizes())
        for name, values in change.items():
            weights[name] = values
        kept = {name: values for name, values in weights.items() if values is not None}
        write_safetensors(folder / "model.safetensors", kept)

    return spoil


def change(name: str, values: np.ndarray | None) -> Callable[[Path], Any]:
    return state(**{name: values})


def entries(text: str) -> Callable[[Path], Any]:
    return lambda folder: write_raw(folder / "model.safetensors", text.encode(), bytes(64))


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (remove("config.json"), "config.json"),
    "config of no JSON": (write("config.json", b"{oops"), "config.json"),
    "config nested too deep": (write("config.json", b"[" * 100_000), "config.json"),
    "config a list": (write("config.json", b"[1]"), "config.json"),
    "config of other bytes": (write("config.json", b"\xff\xfe\0\0"), "config.json"),
    "unknown class": (set_config(architectures=["MambaForCausalLM"]), "Mamba"),
    "width in words": (set_config(hidden_size="64"), "hidden_size"),
    "absurd width": (set_config(hidden_size=10**30), "hidden_size"),
    "a fraction of a layer": (set_config(num_hidden_layers=2.5), "num_hidden_layers"),
    "absurd layers": (set_config(num_hidden_layers=10**9), "num_hidden_layers"),
    "more layers than there are": (set_config(num_hidden_layers=5), "layers.2."),
    "absurd vocabulary": (set_config(vocab_size=10**12), "vocab_size"),
    "no vocabulary": (set_config(vocab_size=0), "vocab_size"),
    "vocabulary larger than the embedding": (set_config(vocab_size=500), "embed_tokens"),
    "vocabulary smaller than the embedding": (set_config(vocab_size=100), "100"),
    "absurd head size": (set_config(head_dim=1 << 20), "head_dim"),
    "odd head size": (set_config(head_dim=15), "head_dim"),
    "theta 0": (set_config(rope_theta=0), "rope_theta"),
    "epsilon below 0": (set_config(rms_norm_eps=-1), "rms_norm_eps"),
    "unknown activation": (set_config(hidden_act="gelu_new"), "gelu_new"),
    "unknown rope scaling": (set_config(rope_scaling={"rope_type": "yarn", "factor": 4}), "yarn"),
    "rope scaling a number": (set_config(rope_scaling=3), "rope_scaling"),
    "tied to nobody": (set_config(tie_word_embeddings="maybe"), "tie_word_embeddings"),
    "end token outside": (set_config(eos_token_id=10**6), "eos_token_id"),
    "no weights": (remove("model.safetensors"), "safetensors"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors"),
    "header longer than the file": (write("model.safetensors", b"\xff" * 64), "header length"),
    "header of no JSON": (entries("{oops"), "header"),
    "header nested too deep": (entries("[" * 100_000), "header"),
    "header a list": (entries("[]"), "header"),
    "no tensors": (entries("{}"), "embed"),
    "an unknown dtype": (entries('{"lm_head.weight": {"dtype": "Q9", "shape": [4], "data_offsets": [0, 4]}}'), "Q9"),
    "a dtype that is not read": (
        entries('{"lm_head.weight": {"dtype": "F64", "shape": [8], "data_offsets": [0, 64]}}'), "F64",
    ),
    "data beyond the end": (
        entries('{"lm_head.weight": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}'), "lm_head",
    ),
    "more shape than data": (
        entries('{"lm_head.weight": {"dtype": "F32", "shape": [99], "data_offsets": [0, 64]}}'), "lm_head",
    ),
    "negative offsets": (
        entries('{"lm_head.weight": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}'), "data_offsets",
    ),
    "a shape that overflows": (
        entries(f'{{"a": {{"dtype": "F32", "shape": [{HUGE}, {HUGE}], "data_offsets": [0, 0]}}}}'), "shape",
    ),
    "tensors on top of each other": (
        entries(
            '{"lm_head.weight": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},'
            ' "model.norm.weight": {"dtype": "F32", "shape": [8], "data_offsets": [16, 48]}}'
        ),
        "ends at",
    ),
    "missing matrix": (change(UP, None), "layers.1.up"),
    "shape against the config": (change(UP, np.zeros((64, 160), np.float32)), "(160, 64)"),
    "extra bias": (change("model.layers.0.mlp.up_proj.bias", np.zeros(160, np.float32)), "up_proj.bias"),
    "extra tensor of nobody's": (change("model.layers.0.adapter.weight", np.zeros(4, np.float32)), "adapter"),
    "packed without a scale": (change(UP, np.zeros((40, 64), np.uint8)), "weight_scale"),
    "weights no numbers": (change(UP, np.full((160, 64), np.nan, np.float32)), "NaN"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json"),
    "tokenizer of no JSON": (write("tokenizer.json", b"{oops"), "tokenizer.json"),
    "tokenizer of another kind": (write("tokenizer.json", b'{"version": "1.0", "model": {"type": "X"}}'), "tokenizer"),
    "tokenizer of other bytes": (write("tokenizer.json", bytes(range(256))), "tokenizer.json"),
    "tokenizer's config a list": (write("tokenizer_config.json", b"[]"), "tokenizer_config.json"),
    "generation config of no JSON": (write("generation_config.json", b"{"), "generation_config.json"),
    "a shard outside": (
        lambda folder: (
            (folder / "model.safetensors").rename(folder / "other.safetensors"),
            write("model.safetensors.index.json", b'{"weight_map": {"lm_head.weight": "../../etc/passwd"}}')(folder),
        ),
        "weight_map",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_folders(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    spoil, fragment = BAD_FOLDERS[case]
    tiny_hf(tmp_path / "model")
    spoil(tmp_path / "model")
    assert_one_error(cli.exit_code(run(tmp_path / "model")), *capfd.readouterr(), fragment)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0])
def test_a_ternary_scale_without_meaning(tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float) -> None:
    tiny_hf(tmp_path, family="bitnet")
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + length])[UP + "_scale"]["data_offsets"]
    at = 8 + length + begin
    (tmp_path / "model.safetensors").write_bytes(raw[:at] + bfloat16(np.float32([scale])).tobytes() + raw[at + 2 :])
    assert_one_error(cli.exit_code(run(tmp_path)), *capsys.readouterr(), "up_proj", "finite")


@pytest.mark.parametrize("size", [4, 8, 200, -1])
def test_safetensors_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    tiny_hf(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_one_error(cli.exit_code(run(tmp_path)), *capsys.readouterr(), "model.safetensors", "; ")


# ---- requests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "model.gguf")


def test_the_models_run_unspoilt(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then it is what the tables spoil that the errors are about."""
    tiny_hf(tmp_path / "hf")
    state()(tmp_path / "hf")
    tiny_hf(tmp_path / "bitnet", family="bitnet")
    quantised = spoilt_gguf(tmp_path / "q4_0.gguf", lambda *_: None, "Q4_0")
    for path in (model, tmp_path / "hf", tmp_path / "bitnet", quantised):
        assert cli.exit_code(run(path)) == 0, capsys.readouterr().err


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


# ---- environment and streams, in a process of their own -------------------------------------------------------------


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


# ---- writing ---------------------------------------------------------------------------------------------------------

WRITING = {
    "quantise a folder into itself": (["quantize", "hf", "hf/model.safetensors", "--format", "planes4-g32"], "its own"),
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
