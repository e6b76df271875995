"""Packed models give the bits of their sources, from where the file is mapped; a header that lies is refused."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.launch import Workers
from lutra.engine.llm import LLM
from lutra.engine.params import SamplingParams
from lutra.errors import FileError
from lutra.files import open_model
from lutra.formats import catalog
from lutra.kernels import stored
from lutra.model import packed
from lutra.model.config import config_from, to_json
from lutra.model.load import load_weights
from lutra.model.pack import ORDERS, pack
from lutra.model.random import random_config, random_weights
from lutra.model.tokenizer import Tokenizer
from lutra.model.transformer import Transformer
from tests.files.make_models import tiny_hf, tiny_llama_gguf

TOKENS = [1, *(int(i) for i in np.random.default_rng(5).integers(3, 250, 40))]
TEXT = "It was the best of times,\n it was <|end|> 1859 – été"

MODELS = {
    "gguf-F32": lambda folder: tiny_llama_gguf(folder / "m.gguf"),
    "gguf-Q4_0": lambda folder: tiny_llama_gguf(folder / "m.gguf", quant="Q4_0"),
    "gguf-qwen2": lambda folder: tiny_llama_gguf(folder / "m.gguf", quant="Q8_0", family="qwen2"),
    "qwen2": lambda folder: (tiny_hf(folder, family="qwen2"), folder)[1],
    "qwen3": lambda folder: (tiny_hf(folder, family="qwen3"), folder)[1],
    "bitnet": lambda folder: (tiny_hf(folder, family="bitnet"), folder)[1],
}


def nobody(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def path(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source`, packed."""
    target = tmp_path_factory.mktemp("packed") / "m.lutra"
    said = pack(source, target, "auto", nobody)
    assert said.startswith(f"{target}: ") and " order" in said
    return target


def load(path: Path) -> packed.Weights:
    """All that is checked when a packed model is opened."""
    file = open_model(path)
    config = config_from(file)
    Tokenizer.from_file(file)
    return packed.load(file, config)


def transformer(path: Path, isa: str | None = None) -> Transformer:
    file = open_model(path)
    config = config_from(file)
    weights = packed.load(file, config) if file.kind == "packed" else load_weights(file, config)
    return Transformer(config, weights, Workers(1), 96, isa=isa)


# ---- the same model -------------------------------------------------------------------------------------------------


def test_config_and_tokenizer_come_back(source: Path, path: Path) -> None:
    one, other = open_model(source), open_model(path)
    assert config_from(one) == config_from(other)
    ours, theirs = Tokenizer.from_file(one), Tokenizer.from_file(other)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.encode(TEXT, parse_special=True) == theirs.encode(TEXT, parse_special=True)
    assert ours.decode(range(ours.vocab_size)) == theirs.decode(range(ours.vocab_size))
    for name in ("vocab_size", "bos_id", "add_bos", "eos_ids"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_logits_are_the_same_bits(source: Path, path: Path) -> None:
    want = transformer(source).prefill(TOKENS, 0)
    assert np.isfinite(want).all() and want.std() > 0
    got = transformer(path).prefill(TOKENS, 0)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_weights_are_used_where_they_are_mapped(path: Path) -> None:
    for _, linear in packed.linears(load(path)):
        weight = linear.weight
        arrays = [getattr(weight, part) for part in stored.ARRAYS]
        for array in [*(array for array in arrays if array.size > 1), *([] if linear.bias is None else [linear.bias])]:
            assert not array.flags.owndata and not array.flags.writeable and array.ctypes.data % 64 == 0
            while isinstance(array.base, np.ndarray):
                array = array.base
            assert isinstance(array, np.memmap)


def test_llm_runs_it_and_describes_it(source: Path, path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    ours, theirs = (LLM.load(model, threads=1, context=64) for model in (source, path))
    assert "".join(ours.stream("It was", params)) == "".join(theirs.stream("It was", params))
    messages = [{"role": "user", "content": "Hi"}]
    assert "".join(ours.chat(messages, params)) == "".join(theirs.chat(messages, params))
    assert ours.perplexity(TEXT) == theirs.perplexity(TEXT)
    text = theirs.describe()
    assert "packed" in text and "layers.1.gate_up" in text and "order" in text and "used in place" in text


def test_packing_twice_gives_the_same_file(source: Path, path: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "again.lutra", "auto", nobody)
    assert (tmp_path / "again.lutra").read_bytes() == path.read_bytes()


# ---- one model of ternary weights: orders, machines, lies -----------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bitnet")
    tiny_hf(folder, family="bitnet")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A packed model, to be damaged."""
    target = tmp_path_factory.mktemp("whole") / "m.lutra"
    pack(folder, target, "auto", nobody)
    return target.read_bytes()


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "auto"])
def test_every_order_gives_the_same_bits(folder: Path, tmp_path: Path, order: str) -> None:
    target = tmp_path / "m.lutra"
    assert f"in {order} order" in pack(folder, target, order, nobody)
    want = transformer(folder).prefill(TOKENS, 0).copy()
    isas = [target.isa for target in targets.available()]
    for isa in isas if order == "mad" else isas[:1]:  # the others are long to compile, and hold to the same integers
        got = transformer(target, isa).prefill(TOKENS, 0)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("name", [
    "planes4-g32-mins-u8xf16", "planes6-g16-i8xf16", "planes1x3-g128-mins", "ternaryx2-g128", "iq4nl-g32",
    "e2m1-g32-e8m0", "e2m1-g16-e4m3xf32-row", "planes4-g128-bf16", "ternary-g32-mins-i8xf32",
    "e4m3-row", "e4m3-g32-e8m0",
])  # fmt: skip
def test_every_kind_of_scale_comes_back(tmp_path: Path, name: str) -> None:
    """Arrays, axes and logits of a random model; no float of one byte may stand for no number."""
    config, target = random_config("tiny"), tmp_path / "r.lutra"
    weights = random_weights(config, catalog.find(name))
    packed.write(target, config, ({}, {}), weights, None)
    again = packed.load(open_model(target), config)
    for (_, ours), (_, theirs) in zip(packed.linears(weights), packed.linears(again), strict=True):
        assert ours.weight.format == theirs.weight.format and ours.weight.order == theirs.weight.order
        for part in stored.ARRAYS:
            np.testing.assert_array_equal(getattr(ours.weight, part), getattr(theirs.weight, part))
    want, got = (Transformer(config, each, Workers(1), 96).decode(7, 0).copy() for each in (weights, again))
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
    assert np.isfinite(want).all() and want.std() > 0
    if weights.head.weight.format.scale_dtype in ("e8m0", "e4m3"):
        weights.head.weight.scales[5] = 255
        packed.write(target, config, ({}, {}), weights, None)
        with pytest.raises(FileError, match="head: expected finite scales, got nan"):
            packed.load(open_model(target), config)
    if name == "e4m3-row":
        weights.head.weight.scales.view(np.float32)[7] = -1e36
        packed.write(target, config, ({}, {}), weights, None)
        with pytest.raises(FileError, match="head.scales: expected finite products with codes, got inf"):
            packed.load(open_model(target), config)
    if name == "ternary-g32-mins-i8xf32":
        weights.head.weight.super_mins.view(np.float32)[7] = -3e38
        packed.write(target, config, ({}, {}), weights, None)
        with pytest.raises(FileError, match="head.super_mins: expected finite products with scales, got inf"):
            packed.load(open_model(target), config)


def test_tokens_do_not_depend_on_where_weights_end(tmp_path: Path) -> None:
    """Random weights are padded further than models are; tied head and embedding in two orders."""
    config = random_config("tiny")
    for order in ("mad", "lut"):
        weights = random_weights(config, catalog.ternary(), order)
        packed.write(tmp_path / "r.lutra", config, ({}, {}), weights, None)
        file = open_model(tmp_path / "r.lutra")
        assert config_from(file) == config
        want = Transformer(config, weights, Workers(1), 32).prefill([1, 2, 3], 0)
        got = Transformer(config, packed.load(file, config), Workers(1), 32).prefill([1, 2, 3], 0)
        assert want.tobytes() == got.tobytes()


def change(path: Path, whole: bytes, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Write `whole` with a changed header: edit(lutra's header, safetensors' entries)."""
    begin = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:begin])
    header = json.loads(entries["__metadata__"]["lutra"])
    edit(header, entries)
    entries["__metadata__"]["lutra"] = json.dumps(header)
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[begin:])
    return path


def refusal(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "expected" in text and "got" in text and ";" in text and len(text) < 1000
    return text


Q = "layers.0.qkv.0"


def weight(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, entries: header["weights"][Q].update(changes)


def config(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, entries: header["config"].update(changes)


def axes(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, entries: header["formats"]["ternary"].update(changes)


def rename(old: str, new: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, entries: entries.update({new: entries.pop(old)})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (weight(order="zigzag"), "an order of mad, .*, got 'zigzag'; update lutra"),
        (weight(order=["mad"]), "an order of"),
        (weight(order="lut", padded_n=128 + 64), "codes: expected"),
        (weight(order="dense"), "dense order"),
        (weight(format="planes4-g32"), "a format that the header states"),
        (weight(format={}), "a format that the header states"),
        (weight(format="f32"), "mad order"),
        (weight(n=64), "128 x 64 by the config"),
        (weight(k=96), "by the config"),
        (weight(k=-64), "numbers for"),
        (weight(k=64.0), "numbers for"),
        (weight(padded_n=1 << 40), "numbers for"),
        (weight(padded_n=160), "codes: expected"),
        (weight(padded_n=256), "padded_n"),
        (weight(padded_n=127), "padded_n"),
        (weight(padded_k=96), "padded_k"),
        (weight(extra=1), "order, format, n, k"),
        (lambda header, entries: header.pop("weights"), "weights"),
        (lambda header, entries: header["weights"].pop(Q), Q),
        (lambda header, entries: header["weights"].update({"layers.7.o": {}}), "only arrays"),
        (lambda header, entries: header["weights"].update({"layers.0.qkv.1": {}}), "64 x 64 by the config"),
        (axes(bits=3, alphabet="uniform", zero=4), "planes3-row"),
        (axes(bits=True), "bits"),
        (axes(bits=4), "agree"),
        (axes(group_size=24), "group_size"),
        (axes(scale_dtype="f64"), "scale_dtype"),
        (axes(offset="mins"), "agree"),
        (axes(name="x"), "axes"),
        (lambda header, entries: header.update(formats=[]), "formats"),
        (lambda header, entries: header["formats"].update({"a\nb": header["formats"]["ternary"]}), r"'a\\nb'"),
        (lambda header, entries: header["formats"].update({"x": 3}), "axes"),
        (config(num_layers=1), "only arrays"),
        (config(num_layers=3), "layers.2"),
        (config(num_layers=True), "num_layers"),
        (config(hidden_size=128), "64 numbers|128"),
        (config(head_dim=1 << 20), "head_dim"),
        (config(num_kv_heads=3), "num_kv_heads"),
        (config(vocab_size=1 << 20), "by the config"),
        (config(architecture="mamba"), "architecture"),
        (config(activation="gelu"), "activation"),
        (config(rope_theta="x"), "rope_theta"),
        (config(rope_scaling={"type": "yarn"}), "yarn"),
        (config(norm_eps=float("nan")), "norm_eps"),
        (config(chat_template=3), "chat_template"),
        (config(eos_ids=[-7]), "eos_ids"),
        (config(tied=False), "embed"),
        (config(qkv_bias=True), "qkv.0.bias"),
        (config(qk_norm=True), "q_norm"),
        (config(ffn_sub_norm=False), "only arrays"),
        (lambda header, entries: header.update(config=None), "config"),
        (lambda header, entries: header.update(tokenizer={"bos_id": 1 << 40}), "bos_id"),
        (lambda header, entries: header.update(tokenizer={"add_bos": 1}), "add_bos"),
        (rename("tokenizer.json", "tokens"), "tokenizer.json or vocabulary.json"),
        (rename("tokenizer.json", "vocabulary.json"), "tokens"),
        (rename("final_norm", "norm"), "final_norm"),
        (rename(Q + ".scales", Q + ".scale"), "qkv.0.scales"),
        (lambda header, entries: entries[Q + ".scales"].update(dtype="F16", shape=[256]), "float32"),
        (lambda header, entries: entries["final_norm"].update(dtype="U8", shape=[256]), "float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_that_lie(tmp_path: Path, whole: bytes, edit: Any, words: str) -> None:
    assert re.search(words, refusal(change(tmp_path / "m.lutra", whole, edit)))


def test_an_array_that_is_too_short_is_never_read(tmp_path: Path, whole: bytes) -> None:
    """The codes of one weight and the filling behind them: sizes that safetensors accepts and the order does not."""

    def shorten(header: dict[str, Any], entries: dict[str, Any]) -> None:
        begin, end = entries[Q + ".codes"]["data_offsets"]
        entries[Q + ".codes"].update(shape=[end - begin - 64], data_offsets=[begin, end - 64])
        entries["fill.99"] = {"dtype": "U8", "shape": [64], "data_offsets": [end - 64, end]}

    text = refusal(change(tmp_path / "m.lutra", whole, shorten))
    assert f"{Q}: codes: expected 2048 bytes, got 1984" in text


@pytest.mark.parametrize("name", [Q + ".scales", "final_norm", "layers.1.attn_sub_norm"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers(tmp_path: Path, whole: bytes, name: str, value: float) -> None:
    begin = 8 + int.from_bytes(whole[:8], "little")
    at = begin + json.loads(whole[8:begin])[name]["data_offsets"][0] + 4
    (tmp_path / "m.lutra").write_bytes(whole[:at] + np.float32(value).tobytes() + whole[at + 4 :])
    assert f"{name}: expected finite values" in refusal(tmp_path / "m.lutra")


def test_finite_floats_of_every_kind_pass() -> None:
    for dtype in (np.float16, np.float32):
        info = np.finfo(dtype)
        assert packed._all_finite(np.array([info.max, info.min, 0, -0.0, info.tiny, info.smallest_subnormal], dtype))
        assert packed._all_finite(np.array([], dtype))
        assert packed._all_finite(np.array([-1], dtype))


def test_random_damage_never_escapes(tmp_path: Path, whole: bytes) -> None:
    """Change bytes of the header, or a value in it, or cut the file, 300 times: it opens, or FileError."""
    path, chance = tmp_path / "m.lutra", random.Random(0)
    begin = 8 + int.from_bytes(whole[:8], "little")
    places = [i for i in range(begin) if whole[i : i + 1].isalnum()]
    refused = 0
    for turn in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2])):
            if turn % 3:
                damaged[chance.choice(places)] = chance.choice(b"0123456789")
            else:
                damaged[chance.randrange(begin)] = chance.randrange(256)
        if chance.random() < 0.1:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            load(path)
        except FileError:
            refused += 1
    assert 100 < refused


def test_random_values_never_escape(tmp_path: Path, whole: bytes) -> None:
    """Put a value of another kind in a random place of the header, 200 times."""
    chance, values = random.Random(1), [None, True, -1, 0, 1, 2, 64, 65, 2**31, 2**63, 1.5, "", "mad", [], [1], {}]

    def replace(header: dict[str, Any], entries: dict[str, Any]) -> None:
        node: Any = header
        while True:
            key = chance.choice(list(node))
            if not isinstance(node[key], dict) or not node[key] or chance.random() < 0.1:
                node[key] = chance.choice(values)
                return
            node = node[key]

    refused = 0
    for _ in range(200):
        try:
            load(change(tmp_path / "m.lutra", whole, replace))
        except FileError:
            refused += 1
    assert 100 < refused < 200


def test_config_to_json_is_json() -> None:
    config = random_config("tiny")
    assert json.loads(json.dumps(to_json(config)))["eos_ids"] == list(config.eos_ids)
