"""A model you can talk to: load, stream, chat."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lutra.engine import perplexity
from lutra.engine.params import SamplingParams
from lutra.engine.perplexity import DEFAULT_PROTOCOL, Perplexity
from lutra.engine.runner import run_pending
from lutra.engine.sampler import check_finite, make_rng, sample
from lutra.engine.sequence import Sequence
from lutra.engine.stop import StopText
from lutra.errors import CapacityError
from lutra.machine import usable_cores
from lutra.model.chat import encode_chat, template_for
from lutra.model.chat_template import PLAIN_STOP, PLAIN_TEMPLATE
from lutra.model.describe import describe
from lutra.model.load import DEFAULT_KV, Model, Progress, load_model

DEFAULT_MODEL = Path(__file__).parent.parent / "models" / "stories"


@dataclass
class Stats:
    """What the last generation took.

    Times in seconds of computing and sampling, without what the reader of the text does in between; the first token
    belongs to prefill.  An end token counts as generated.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: float = 0.0
    load_s: float = 0.0

    def count(self, step_s: float) -> None:
        """Add one token that took `step_s`."""
        self.generated_tokens += 1
        if self.generated_tokens == 1:
            self.prefill_s = self.first_token_s = step_s
        else:
            self.decode_s += step_s


class LLM:
    """A loaded model with one sequence's KV cache.  Not for several threads at once."""

    def __init__(self, model: Model):
        self.model = model
        self.config, self.tokenizer, self.transformer = model.config, model.tokenizer, model.transformer
        self.sequence = Sequence()
        self.stats = Stats()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        context: int | None = None,
        progress: Progress | None = None,
        kv: str = DEFAULT_KV,
        head: str | None = None,
        prefill_threads: int | None = None,
    ) -> LLM:
        """Open a model: a .gguf or .lutra file, a Hugging Face folder, or None for the model that comes with lutra.

        threads   default: the cores this process may use
        context   tokens to make room for; default: the model's own, at most 4096
        progress  called as progress(label, done, total)
        kv        what the KV cache holds: f16, bf16, f32, int8, int4, kivi4 or kivi2
        head      format to round the head to, as planes4-g32; default: as stored.  The embedding stays as stored
        prefill_threads  for the prompt, which computes where decoding reads memory; default: as threads
        Raises FileError (the file), CapacityError (context or threads), KernelError (kv), FormatError (head),
        RequestError (head of a packed file), LutraError (instruction set).
        """
        started = time.perf_counter()
        count = threads or usable_cores()
        llm = cls(load_model(Path(path or DEFAULT_MODEL), count, context, progress, kv, head, prefill_threads))
        llm.stats.load_s = time.perf_counter() - started
        return llm

    def stream(self, prompt: str, params: SamplingParams | None = None) -> Iterator[str]:
        """Continue a text; yields pieces of text as they are ready.

        params   default: SamplingParams()
        Raises CapacityError for a prompt longer than the context, with the first piece.
        """
        return self.stream_ids(self.tokenizer.encode(prompt), params or SamplingParams())

    def chat(self, messages: list[dict[str, str]], params: SamplingParams | None = None) -> Iterator[str]:
        """Answer the last of `messages` ({"role", "content"}); yields pieces of the answer.

        A model without a chat template gets a plain transcript, and its answer ends where the next turn begins.
        """
        params = params or SamplingParams()
        template = template_for(self.config, self.tokenizer)
        if template == PLAIN_TEMPLATE:
            params = replace(params, stop=(*params.stop, *PLAIN_STOP))
        return self.stream_ids(encode_chat(self.tokenizer, template, messages), params)

    def generate_ids(self, prompt: list[int], params: SamplingParams) -> Iterator[int]:
        """Continue token ids until an end token (not yielded), max_tokens or the context's end."""
        self._check_room(prompt)
        stats = self.stats = Stats(prompt_tokens=len(prompt), load_s=self.stats.load_s)
        stats.cached_tokens = self.sequence.restart(prompt, self.transformer.resumable)
        rng = make_rng(params.seed)
        for _ in range(min(params.max_tokens, self.transformer.context - len(prompt) + 1)):
            started = time.perf_counter()
            logits = run_pending(self.transformer, self.sequence)
            token = self._choose(logits, params, rng)
            stats.count(time.perf_counter() - started)
            if token in self.tokenizer.eos_ids and not params.ignore_eos:
                return
            self.sequence.tokens.append(token)
            yield token

    def _choose(self, logits: np.ndarray, params: SamplingParams, rng: np.random.Generator) -> int:
        """The next token; the best one is found already, by the last kernel of the step."""
        if not params.is_greedy:
            return sample(logits, params, rng, self.sequence.tokens)
        best = self.transformer.best
        check_finite(logits[best])
        return best

    def stream_ids(self, prompt: list[int], params: SamplingParams) -> Iterator[str]:
        """Continue token ids; yields pieces of text, up to a stop text."""
        decoder, stop = self.tokenizer.stream(), StopText(params.stop)
        for token in self.generate_ids(prompt, params):
            text = stop.push(decoder.push(token))
            if text:
                yield text
            if stop.is_over:
                return
        text = stop.push(decoder.finish()) + stop.finish()
        if text:
            yield text

    def _check_room(self, prompt: list[int]) -> None:
        if not prompt:
            raise CapacityError("expected a prompt of at least one token, got none; write something")
        if len(prompt) > self.transformer.context:
            raise CapacityError(
                f"expected a prompt of at most {self.transformer.context} tokens, got {len(prompt)}; "
                "shorten it or make more room with --ctx"
            )

    def perplexity(self, text: str, context: int | None = None, progress: Progress | None = None) -> float:
        """Perplexity of a text in windows of `context` tokens; `measure` says more, and by which protocol."""
        return self.measure(text, context, progress).value

    def measure(
        self,
        text: str,
        context: int | None = None,
        progress: Progress | None = None,
        protocol: str = DEFAULT_PROTOCOL,
    ) -> Perplexity:
        """Measure the perplexity of a text by a protocol of engine/perplexity.PROTOCOLS.

        context   tokens of a window; default: the protocol's, or all that was made room for where that is less
        progress  called as progress(label, done, total), in scored tokens
        Raises RequestError for a text too short to score and a protocol there is not.
        """
        tokens, bos_id = self.tokens_of(text)
        window = perplexity.window_size(protocol, context, self.transformer.context)
        scorer = self.transformer.scorer(window)
        return perplexity.measure(scorer, tokens, bos_id, window, protocol, progress)

    def tokens_of(self, text: str) -> tuple[list[int], int | None]:
        """The tokens of a text without BOS, and the BOS token where the model wants one."""
        return self.tokenizer.encode(text, add_bos=False), self.tokenizer.bos_id if self.tokenizer.add_bos else None

    def describe(self) -> str:
        """The model in words: sizes, and how each tensor is stored and computed."""
        return describe(self.model)

    def __repr__(self) -> str:
        return f"<lutra.LLM {self.config.architecture} {self.model.file.path.name}>"
