"""Small models for the tests of the engine."""

from pathlib import Path

import pytest

from lutra.engine.llm import LLM
from tests.files.make_models import tiny_hf, tiny_llama_gguf


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of floats with a chat template, a byte-level vocabulary of 264 and a context of 256."""
    return tiny_llama_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def bitnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ternary model, its vocabulary and context as those of `gguf`."""
    folder = tmp_path_factory.mktemp("bitnet")
    tiny_hf(folder, family="bitnet")
    return folder


@pytest.fixture
def llm(gguf: Path) -> LLM:
    return LLM.load(gguf, threads=1, context=64)
