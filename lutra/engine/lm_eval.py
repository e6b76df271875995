"""lutra as a model of EleutherAI's lm-evaluation-harness, for whatever tasks it has: pip install 'lutra[eval]'.

    import lm_eval
    from lutra.engine.lm_eval import model_class
    lm_eval.simple_evaluate(model=model_class().load("model.gguf"), tasks=["arc_easy"])

`model_class` imports lm_eval; this file alone does not.  Written to the interface of lm_eval.api.model.LM, version 0.4:
a request has `args`, and answers come in the order of the requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from lutra.engine.likelihood import Judge
from lutra.engine.llm import LLM
from lutra.engine.params import SamplingParams
from lutra.engine.perplexity import Window, negative_log_likelihoods
from lutra.errors import RequestError

NUM_TOKENS = 256  # generated, where a task says nothing
NEED = "expected the package lm_eval, which is not installed; do: pip install 'lutra[eval]'"
# what a task calls the settings of sampling → SamplingParams' names
SETTINGS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}


class Answers:
    """The answers themselves, apart from lm_eval: requests are plain tuples of arguments."""

    def __init__(self, llm: LLM):
        self.llm = llm
        self.judge = Judge(llm.transformer.scorer(llm.transformer.context), llm.tokenizer)

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what the model would say."""
        for context, continuation in pairs:
            found = self.judge.text(context, continuation)
            yield found.nats, found.is_greedy

    def rolling(self, texts: Sequence[str]) -> Iterator[float]:
        """Log-likelihood of whole texts; each token is scored once, in windows as long as the context.

        The first token of a text follows BOS (or the end token); every later window begins with the last token of the
        one before, as lm-eval cuts with a context of one token.
        """
        tokenizer = self.llm.tokenizer
        first = tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.eos_ids, default=0)
        room = self.llm.transformer.context - 1
        for text in texts:
            tokens = [first, *tokenizer.encode(text, add_bos=False)]
            starts = range(0, len(tokens) - 1, room)
            windows = [Window(tokens[start : start + room + 1]) for start in starts]
            yield -sum(sum(negative_log_likelihoods(self.judge.transformer, window)) for window in windows)
        self.judge.cached = []  # the transformer's cache holds something else now

    def generated(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
        """Continue each text by the settings beside it; a text too long for the context loses its front."""
        llm = self.llm
        for text, settings in requests:
            params = sampling(settings)
            tokens = llm.tokenizer.encode(text)
            room = max(llm.transformer.context - params.max_tokens, 1)
            yield "".join(llm.stream_ids(tokens[-room:], params))


def sampling(settings: dict[str, Any]) -> SamplingParams:
    """Make a task's generation settings ours: greedy unless it asks to sample.  Raises RequestError for odd values."""
    stops = settings.get("until") or ()
    stops = (stops,) if isinstance(stops, str) else tuple(stop for stop in stops if stop)
    chosen: dict[str, Any] = {"temperature": 0.0}
    if settings.get("do_sample", settings.get("temperature", 0) != 0):
        chosen = {ours: settings[theirs] for theirs, ours in SETTINGS.items() if theirs in settings}
    return SamplingParams(max_tokens=settings.get("max_gen_toks") or NUM_TOKENS, stop=stops, **chosen)


@cache
def model_class() -> Any:
    """The class to give to lm_eval, also known to it as "lutra".  Raises RequestError where lm_eval is missing."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise RequestError(f"{NEED} ({error})") from None

    @register_model("lutra")
    class LutraLM(LM):  # type: ignore[misc]
        """A model that lutra runs.  pretrained: what LLM.load takes; other arguments too are its own."""

        def __init__(self, pretrained: str | LLM, **options: Any):
            super().__init__()
            known = {name: options[name] for name in ("threads", "context", "kv", "head") if name in options}
            self.answers = Answers(pretrained if isinstance(pretrained, LLM) else LLM.load(pretrained, **known))

        @classmethod
        def load(cls, path: str, **options: Any) -> LutraLM:
            return cls(path, **options)

        @property
        def tokenizer_name(self) -> str:
            return str(self.answers.llm.model.file.path)

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return list(self.answers.likelihoods([request.args for request in requests]))

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            return list(self.answers.rolling([request.args[0] for request in requests]))

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return list(self.answers.generated([request.args for request in requests]))

    return LutraLM
