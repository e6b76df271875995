"""The plain layer and the stream through it compute what the reference decoder does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lutra.errors import RequestError
from lutra.files import open_model
from lutra.model import calibrate, float_layer
from lutra.model.config import config_from
from lutra.model.rope import rope_frequencies
from tests.files.make_models import tiny_hf
from tests.reference_decoder import ReferenceDecoder


class Stored:
    """A layer of a file, in f32."""

    def __init__(self, weights: dict[str, np.ndarray], index: int) -> None:
        self.weights, self.prefix = weights, f"layers.{index}."

    def matrix(self, name: str) -> np.ndarray:
        return self.weights[self.prefix + name]

    def vector(self, name: str) -> np.ndarray | None:
        return self.weights.get(self.prefix + name)


def opened(folder: Path, family: str):
    tiny_hf(folder, family)
    file = open_model(folder)
    config = config_from(file)
    reference = ReferenceDecoder(file, config)
    weights = {
        name: np.asarray(value.dequantize() if hasattr(value, "dequantize") else value, np.float32)
        for name, value in reference.weights.items()
    }
    reference.weights = weights  # floats, so that activations stay floats too
    return config, reference, weights


def stream_of(config, weights, windows) -> calibrate.Stream:
    return calibrate.Stream(config, windows, lambda tokens: weights["embed"][tokens], rope_frequencies(config))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "bitnet"])
def test_a_stream_ends_with_the_reference_decoders_logits(family: str, tmp_path: Path) -> None:
    config, reference, weights = opened(tmp_path, family)
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, config.vocab_size, length).tolist() for length in (5, 1, 40)]
    stream = stream_of(config, weights, windows)
    for index in range(config.num_layers):
        stream.layer(Stored(weights, index), lambda names, inputs: None)
    x = float_layer.norm(stream.x, weights["final_norm"], config.norm_eps)
    found = x @ weights["embed" if config.tied else "head"].T
    wanted = np.concatenate([reference.logits(window) for window in windows])
    assert found == pytest.approx(wanted, abs=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("family", ["llama", "bitnet"])
def test_inputs_are_those_of_the_linears(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caught in the reference decoder, whose every linear passes one function; chunks of few rows, so that they add."""
    monkeypatch.setattr(calibrate, "CHUNK_ROWS", 16)
    config, reference, weights = opened(tmp_path, family)
    caught: dict[str, list[np.ndarray]] = {}
    plain = reference._linear

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        caught.setdefault(name, []).append(x)
        return plain(name, x)

    reference._linear = linear
    windows = [np.random.default_rng(i).integers(0, 200, 12).tolist() for i in range(5)]
    for window in windows:
        reference.logits(window)
    stream = stream_of(config, weights, windows)
    for index in range(config.num_layers):
        seen: dict[str, calibrate.Inputs] = {}
        stream.layer(Stored(weights, index), lambda names, found, seen=seen: seen.update(dict.fromkeys(names, found)))
        assert list(seen) == ["q", "k", "v", "o", "gate", "up", "down"]
        for name, inputs in seen.items():
            x = np.concatenate(caught[f"layers.{index}.{name}"])
            assert inputs.hessian == pytest.approx(x.T @ x / len(x), abs=1e-3 * np.abs(x).max() ** 2)
            assert inputs.mean == pytest.approx(np.abs(x).mean(0), rel=1e-2, abs=1e-3)
            assert inputs.sample == pytest.approx(x, abs=1e-3 * np.abs(x).max())


def test_a_sample_is_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SAMPLE_ROWS", 4)
    stream = object.__new__(calibrate.Stream)
    stream.x = np.zeros((10, 1), np.float32)
    rows = np.arange(10, dtype=np.float32)[:, None]
    inputs = stream._collect(rows[start : start + 4] for start in (0, 4, 8))
    assert inputs.sample[:, 0].tolist() == [0, 3, 6, 9] and inputs.mean.tolist() == [4.5]
    assert inputs.hessian[0, 0] == pytest.approx(28.5)


def test_what_is_too_wide_to_keep_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, weights = opened(tmp_path, "llama")
    outcomes = []
    for keep_bytes in (0, 1 << 30):
        monkeypatch.setattr(calibrate, "KEEP_BYTES", keep_bytes)
        stream = stream_of(config, weights, [[1, 2, 3], [4, 5]])
        stream.layer(Stored(weights, 0), lambda names, inputs: None)
        outcomes.append(stream.x)
    assert np.array_equal(*outcomes)


def test_windows_are_evenly_spaced_and_begin_with_bos() -> None:
    tokens = list(range(100))
    assert calibrate.cut(tokens, 2, 10, None) == [tokens[:10], tokens[50:60]]
    assert calibrate.cut(tokens, 2, 10, 7) == [[7, *tokens[:9]], [7, *tokens[45:54]]]
    assert calibrate.cut(tokens[:5], 3, 10, None) == [tokens[:5]]
    with pytest.raises(RequestError, match="without tokens"):
        calibrate.cut([], 2, 10, None)


