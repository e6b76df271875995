"""A loaded model: text, ids and arg-max agree, seeds repeat, stops and the context's end are met, chats have turns."""

from pathlib import Path

import numpy as np
import pytest

import lutra
from lutra.compiler.launch import Workers
from lutra.engine.llm import LLM
from lutra.engine.params import SamplingParams
from lutra.errors import CapacityError, FileError, KernelError
from lutra.files import open_model
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.transformer import Transformer
from tests.files.gguf_writer import write_gguf
from tests.files.make_models import BOS_ID, Sizes, gguf_metadata, gguf_name, interleave, random_state

PROMPT = "It was the best of times"
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, seed=7, max_tokens=24, ignore_eos=True)


def text_of(llm: LLM, params: SamplingParams, prompt: str = PROMPT) -> str:
    return "".join(llm.stream(prompt, params))


def test_load_is_the_public_name_and_repr_names_the_file(gguf: Path) -> None:
    llm = lutra.load(gguf, threads=1, context=32)
    assert repr(llm) == "<lutra.LLM llama tiny.gguf>"
    assert llm.transformer.context == 32 and llm.stats.load_s > 0


def test_the_whole_context_is_the_default(gguf: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    llm = LLM.load(str(gguf), progress=lambda *step: calls.append(step))
    assert llm.transformer.context == llm.config.max_context == 256
    assert [done for _, done, _ in calls] == [1, 2, 3, 4] and {total for _, _, total in calls} == {4}


def test_the_prompt_has_threads_of_its_own_and_the_text_is_the_same(gguf: Path) -> None:
    one, both = (LLM.load(gguf, threads=1, context=64, prefill_threads=count) for count in (None, 3))
    assert (one.transformer.workers.threads, one.transformer.prefill_workers.threads) == (1, 1)
    assert (both.transformer.workers.threads, both.transformer.prefill_workers.threads) == (1, 3)
    assert text_of(one, GREEDY) == text_of(both, GREEDY)
    with pytest.raises(CapacityError, match="expected 1 to 1024 threads, got 2000"):
        LLM.load(gguf, prefill_threads=2000)


@pytest.mark.parametrize(("context", "threads"), [(257, 1), (-1, 1), (64, 1025), (64, -1)])
def test_absurd_sizes_are_refused(gguf: Path, context: int, threads: int) -> None:
    with pytest.raises(CapacityError, match="expected .*, got "):
        LLM.load(gguf, threads=threads, context=context)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_stream_is_the_text_of_its_ids(llm: LLM, params: SamplingParams) -> None:
    ids = list(llm.generate_ids(llm.tokenizer.encode(PROMPT), params))
    assert len(ids) == 24 == llm.stats.generated_tokens
    decoder = llm.tokenizer.stream()
    assert text_of(llm, params) == "".join([decoder.push(token) for token in ids]) + decoder.finish()


def test_the_same_seed_gives_the_same_text_and_another_another(llm: LLM) -> None:
    first, again = text_of(llm, DRAWN), text_of(llm, DRAWN)
    other = text_of(llm, SamplingParams(temperature=1.0, seed=8, max_tokens=24, ignore_eos=True))
    assert first == again != other


def test_temperature_0_is_the_arg_max_of_each_step(llm: LLM, gguf: Path) -> None:
    file = open_model(gguf)
    config = config_from(file)
    transformer = Transformer(config, load_weights(file, config), Workers(2), 64)
    tokens = llm.tokenizer.encode(PROMPT)
    for token in llm.generate_ids(list(tokens), GREEDY):
        assert token == int(np.argmax(transformer.prefill(tokens, 0)))
        tokens.append(token)


def test_a_prompt_begins_with_bos_and_the_rest_of_it_is_reused(llm: LLM) -> None:
    text_of(llm, GREEDY)
    assert llm.sequence.tokens[0] == BOS_ID and llm.stats.cached_tokens == 0
    text_of(llm, GREEDY, PROMPT + ", it was")
    assert llm.stats.cached_tokens == len(llm.tokenizer.encode(PROMPT))
    assert llm.stats.prompt_tokens == len(llm.tokenizer.encode(PROMPT + ", it was"))


def test_a_stop_is_left_out_and_ends_the_text(llm: LLM) -> None:
    whole = text_of(llm, GREEDY)
    for start in range(1, len(whole) - 3):  # stops that begin and end inside tokens
        stop = whole[start : start + 3]
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=("never this", stop))
        assert text_of(llm, params) == whole[: whole.index(stop)]


def test_an_end_token_ends_the_text_unless_ignored(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = llm.tokenizer.encode(PROMPT)
    ids = list(llm.generate_ids(prompt, GREEDY))
    end = next(token for i, token in enumerate(ids) if i > 2 and token not in ids[:i])
    monkeypatch.setattr(llm.tokenizer, "eos_ids", (end,))
    assert list(llm.generate_ids(prompt, GREEDY)) == ids
    params = SamplingParams(temperature=0, max_tokens=24)
    assert list(llm.generate_ids(prompt, params)) == ids[: ids.index(end)]
    assert llm.stats.generated_tokens == ids.index(end) + 1


@pytest.mark.parametrize("length", [1, 30, 63, 64])
def test_a_text_may_fill_the_context_and_ends_there(llm: LLM, length: int) -> None:
    """The token that follows the last cached one needs no room: nothing is computed from it."""
    params = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    assert len(list(llm.generate_ids([5] * length, params))) == 64 - length + 1
    assert llm.sequence.num_cached == 64


@pytest.mark.parametrize(
    ("prompt", "message"), [([5] * 65, "at most 64 tokens, got 65; .*--ctx"), ([], "at least one token, got none")]
)
def test_prompts_without_room_or_tokens(llm: LLM, prompt: list[int], message: str) -> None:
    with pytest.raises(CapacityError, match=message):
        next(llm.generate_ids(prompt, GREEDY))
    assert text_of(llm, GREEDY), "and the next one runs"


def test_a_reader_may_leave_in_the_middle(llm: LLM) -> None:
    want = text_of(llm, GREEDY)
    stream = llm.stream(PROMPT, GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert text_of(llm, GREEDY) == want


def test_time_of_the_reader_does_not_count(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("lutra.engine.llm.time.perf_counter", lambda: float(next(clock)))
    for _ in llm.generate_ids([1, 2, 3], SamplingParams(max_tokens=4, ignore_eos=True)):
        for _ in range(50):
            next(clock)
    stats = llm.stats
    assert (stats.generated_tokens, stats.prefill_s, stats.first_token_s, stats.decode_s) == (4, 1.0, 1.0, 3.0)


# ---- chat -----------------------------------------------------------------------------------------------------------


def test_chat_renders_the_model_s_template(llm: LLM) -> None:
    answer = "".join(llm.chat([{"role": "user", "content": "Hi"}], GREEDY))
    prompt = llm.sequence.tokens[: llm.stats.prompt_tokens]
    assert prompt == llm.tokenizer.encode("user: Hi\nassistant: ")
    assert answer == text_of(llm, GREEDY, "user: Hi\nassistant: ")


@pytest.fixture(scope="module")
def untemplated(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model without a chat template, with a vocabulary whose every byte is a token."""
    sizes, metadata = Sizes(), gguf_metadata("llama", Sizes())
    del metadata["tokenizer.chat_template"]
    tensors = []
    for name, values in random_state(np.random.default_rng(0), "llama", sizes).items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        tensors.append((gguf_name(name), "F32", interleave(values, heads) if heads else values))
    path = write_gguf(tmp_path_factory.mktemp("base") / "base.gguf", metadata, tensors)
    return LLM.load(path, threads=1, context=64)


def test_without_a_template_a_transcript_is_continued(untemplated: LLM) -> None:
    "".join(untemplated.chat([{"role": "user", "content": "Hi"}], GREEDY))
    prompt = untemplated.sequence.tokens[: untemplated.stats.prompt_tokens]
    assert prompt == untemplated.tokenizer.encode("User: Hi\nAssistant:")


def test_without_a_template_the_answer_ends_where_the_next_turn_begins(
    untemplated: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(untemplated.tokenizer.encode(" Hello.\nUser: and", add_bos=False))
    monkeypatch.setattr(untemplated, "_choose", lambda *_: next(said))
    assert "".join(untemplated.chat([{"role": "user", "content": "Hi"}], GREEDY)) == " Hello."


def test_a_second_turn_reuses_the_first(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = "".join(llm.chat(messages, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)))
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
    "".join(llm.chat(messages, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)))
    assert llm.stats.cached_tokens >= len(llm.tokenizer.encode("user: Hi\nassistant:"))


# ---- files ----------------------------------------------------------------------------------------------------------


def test_ternary_folders_run(bitnet: Path) -> None:
    llm = LLM.load(bitnet, threads=1, context=64)
    assert text_of(llm, GREEDY) == text_of(LLM.load(bitnet, threads=2, context=64), GREEDY)


def test_a_model_whose_logits_are_no_numbers_says_so(gguf: Path, tmp_path: Path) -> None:
    file = open_model(gguf)
    at = gguf.read_bytes().index(np.asarray(file.tensors["final_norm"].read()).tobytes())
    broken = bytearray(gguf.read_bytes())
    broken[at : at + 4] = np.float32("nan").tobytes()
    (tmp_path / "nan.gguf").write_bytes(broken)
    with pytest.raises(FileError, match="NaN"):
        text_of(LLM.load(tmp_path / "nan.gguf", threads=1), GREEDY)


# ---- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8", "int4", "kivi4"])
def test_the_best_token_is_found_without_the_sampler(gguf: Path, kv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM.load(gguf, threads=1, context=64, kv=kv)
    monkeypatch.setattr("lutra.engine.llm.sample", None)
    prompt = llm.tokenizer.encode("Once")
    found = list(llm.generate_ids(prompt, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)))
    ours = list(prompt)
    for _ in range(5):
        ours.append(int(np.argmax(llm.transformer.prefill(ours, 0))))
        assert llm.transformer.best == ours[-1]
    assert found == ours[len(prompt) :]


def test_an_unknown_cache_is_refused(gguf: Path) -> None:
    with pytest.raises(KernelError, match="expected a KV cache of f16, bf16, f32, int8, int4, kivi4, kivi2, got 'q8'"):
        LLM.load(gguf, threads=1, kv="q8")
