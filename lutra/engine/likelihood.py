"""Log-likelihood of one text after another: what multiple-choice tasks are scored with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lutra.engine.perplexity import log_probabilities
from lutra.errors import RequestError
from lutra.model.tokenizer import Tokenizer
from lutra.model.transformer import Transformer


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: its log probability in nats, whether it is what the model would say itself, its tokens."""

    nats: float
    is_greedy: bool
    num_tokens: int


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both, cut where lm-eval cuts: spaces at the context's end belong to the continuation.

    Both are encoded together, and the continuation gets what lies behind the tokens of the context alone.  A context
    without any token becomes the token that begins or ends a text.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    whole, front = tokenizer.encode(context + continuation), tokenizer.encode(context)
    if not front:
        front = [tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.eos_ids, default=0)]
        whole = front + whole
    return front, whole[len(front) :]


@dataclass
class Judge:
    """Scores continuations with a transformer that `scorer` made; what texts share at the front is computed once."""

    transformer: Transformer
    tokenizer: Tokenizer
    cached: list[int] = field(default_factory=list)

    def text(self, context: str, continuation: str) -> Likelihood:
        """Score a continuation in words.  Raises RequestError for one that has no token of its own."""
        return self.tokens(*encode_pair(self.tokenizer, context, continuation))

    def tokens(self, context: Sequence[int], continuation: Sequence[int]) -> Likelihood:
        """Score tokens; a pair longer than the model's context loses tokens at the front, as in lm-eval.

        context   at least one token
        """
        if not continuation:
            raise RequestError("expected a continuation of at least one token, got none; write something")
        inputs = [*context, *continuation][:-1][-self.transformer.context :]
        count = min(len(continuation), len(inputs))
        nats, is_greedy = 0.0, True
        for logits, targets in self._run(inputs, len(inputs) - count, continuation[-count:]):
            table = log_probabilities(logits)
            nats += float(table[np.arange(len(targets)), targets].sum())
            is_greedy &= bool((logits.argmax(1) == targets).all())
        return Likelihood(nats, is_greedy, count)

    def _run(
        self, inputs: list[int], first: int, targets: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield logits of the inputs from index `first` on, and what each should be followed by, chunk by chunk."""
        shared = 0
        while shared < min(first, len(self.cached)) and self.cached[shared] == inputs[shared]:
            shared += 1
        shared = self.transformer.resumable(shared)
        self.cached = []  # should something fail half-way
        if shared < first:
            self.transformer.prefill(inputs[shared:first], shared)
        for at in range(first, len(inputs), self.transformer.chunk):
            piece = inputs[at : at + self.transformer.chunk]
            yield self.transformer.score(piece, at), np.array(targets[at - first : at - first + len(piece)])
        self.cached = inputs
