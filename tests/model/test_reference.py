"""Logits agree with a plain float64 decoder for every family and weight type, and with transformers where installed."""

from pathlib import Path

import numpy as np
import pytest

from lutra.compiler.launch import Workers
from lutra.engine.llm import LLM
from lutra.engine.params import SamplingParams
from lutra.files import open_model
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.transformer import Transformer
from tests.files.gguf_writer import BLOCKS
from tests.files.make_models import tiny_hf, tiny_llama_gguf
from tests.reference_decoder import ReferenceDecoder

TOKENS = [1, *(int(i) for i in np.random.default_rng(6).integers(3, 250, 30))]
QUANTS = ["F32", "F16", "BF16", *BLOCKS]
NEEDS = "needs transformers and torch: pip install lutra[reference]"
FAMILIES = ["llama", "qwen2", "qwen3", "bitnet", "bitnet-master"]


def _scores(path: Path, at_once: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Every token's logits: ours, of all together or one by one, and the reference's."""
    file = open_model(path)
    config = config_from(file)
    transformer = Transformer(config, load_weights(file, config), Workers(2), 64, all_logits=at_once)
    if at_once:
        ours = transformer.score(TOKENS, 0).copy()
    else:
        ours = np.stack([transformer.decode(token, position).copy() for position, token in enumerate(TOKENS)])
    return ours, ReferenceDecoder(file, config).logits(TOKENS)


def _close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """The root mean square error stays below `tolerance` standard deviations of the logits."""
    error = np.sqrt(((got - want) ** 2).mean()) / want.std()
    assert error < tolerance, f"error is {error:.5f} standard deviations of the logits"


# f16 keys and values cost a little; and an int8 activation that lies on a rounding edge may fall to the other side,
# which random weights, unlike trained ones, pass on undamped
DENSE_TOLERANCE, INT8_TOLERANCE = 0.002, 0.04


@pytest.mark.parametrize("quant", QUANTS)
def test_gguf(tmp_path, quant):
    tiny_llama_gguf(tmp_path / "model.gguf", quant=quant)
    is_dense = quant in ("F32", "F16", "BF16")  # and blocks one by one: fewer kernels to compile
    _close(*_scores(tmp_path / "model.gguf", is_dense), DENSE_TOLERANCE if is_dense else INT8_TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_folders(tmp_path, family):
    tiny_hf(tmp_path, family=family)
    _close(*_scores(tmp_path), INT8_TOLERANCE if "bitnet" in family else DENSE_TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_transformers(tmp_path, family):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install lutra[reference]")
    torch = pytest.importorskip("torch", reason=NEEDS)
    tiny_hf(tmp_path, family=family)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        want = model(torch.tensor([TOKENS])).logits[0].numpy()
    _close(_scores(tmp_path)[0], want, DENSE_TOLERANCE)


STORIES = Path("data/models/stories260K/stories260Ktok512.gguf")


def test_real_model_against_the_plain_decoder(shared):
    """stories260K: 64 greedy tokens, and perplexity within 0.1 %."""
    file = open_model(shared / STORIES)
    config = config_from(file)
    transformer = Transformer(config, load_weights(file, config), Workers(2), 128, all_logits=True)
    tokens = [1, 403]
    for _ in range(64):
        tokens.append(int(transformer.prefill(tokens, 0).argmax()))
    want = ReferenceDecoder(file, config).logits(tokens)
    assert want[1:-1].argmax(1).tolist() == tokens[2:]  # what it writes after each beginning
    tokens, want = tokens[:60], want[:59]
    got = transformer.score(tokens, 0)[:-1].astype(np.float64)
    assert _perplexity(got, tokens) == pytest.approx(_perplexity(want, tokens), rel=1e-3)


def test_real_model_writes_what_transformers_writes(shared):
    """The same, with transformers reading the GGUF file itself."""
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    torch = pytest.importorskip("torch", reason=NEEDS)
    path = shared / STORIES
    settings = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    settings.pad_token_id = None  # the file names one beyond its vocabulary
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=settings, dtype=torch.float32
    )

    def logits(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy().astype(np.float64)

    llm = LLM.load(path)
    prompt = llm.tokenizer.encode("Once upon a time")
    ours = [*llm.generate_ids(prompt, SamplingParams(temperature=0, max_tokens=64, ignore_eos=True))]
    assert logits([*prompt, *ours])[len(prompt) - 1 : -1].argmax(1).tolist() == ours and len(ours) == 64
    text = (shared / "data/text/tinystories_sample/tiny_stories_944k.txt").read_text("utf-8")[:600]
    window = [1, *llm.tokenizer.encode(text, add_bos=False)][:128]
    got = llm.transformer.scorer(128).score(window[:64], 0)
    want = logits(window[:64])
    assert _perplexity(got[:-1], window[:64]) == pytest.approx(_perplexity(want[:-1], window[:64]), rel=1e-3)


def _perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    logits = logits - logits.max(1, keepdims=True)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), tokens[1:]]
    return float(np.exp(nll.mean()))
