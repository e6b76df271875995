"""A decoder that runs: weights, buffers and recorded programs, fed with token ids, answering with logits.

Logits of a token depend on the tokens before it and on nothing else: not on the chunks a prompt came in, the number
of threads, or the instruction set (tests/model/test_exactness.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from lutra.compiler.launch import Program, Workers
from lutra.errors import CapacityError, RequestError
from lutra.kernels.cache import DEFAULT_KIND, resumable
from lutra.model.buffers import HEAD_ROW, NUM_HEAD_ROWS, NUM_ROWS, POSITION, Buffers
from lutra.model.config import ModelConfig
from lutra.model.program import Recorder, Scratch
from lutra.model.weights import Weights

CHUNK = 128  # rows of a prompt that go through the layers together


class Transformer:
    """One sequence's decoder.

    config, weights   what it is
    workers           the threads that run it
    prefill_workers   the threads that run many tokens at once; None: the same
    context           positions the KV cache holds
    all_logits        also compute logits of every row (`score`); needs memory for chunk x vocabulary
    factors           GGUF's rope_freqs, or None
    isa               instruction set, None for LUTRA_ISA or the widest
    kv                kind of KV cache, of kernels/cache.KINDS
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        workers: Workers,
        context: int,
        chunk: int = CHUNK,
        all_logits: bool = False,
        factors: np.ndarray | None = None,
        isa: str | None = None,
        kv: str = DEFAULT_KIND,
        prefill_workers: Workers | None = None,
    ):
        self.config, self.weights, self.workers, self.context = config, weights, workers, context
        self.prefill_workers = prefill_workers or workers
        self.chunk, self.factors, self.isa, self.kv = chunk, factors, isa, kv
        self.buffers = Buffers(config, context, chunk, chunk if all_logits else 1, factors, kv)
        self.scratch = Scratch(self.buffers.rows)

    def scorer(self, context: int) -> Transformer:
        """The same weights and threads with a cache of their own, computing the logits of every row."""
        return Transformer(
            self.config,
            self.weights,
            self.workers,
            context,
            all_logits=True,
            factors=self.factors,
            isa=self.isa,
            kv=self.kv,
            prefill_workers=self.prefill_workers,
        )

    @property
    def best(self) -> int:
        """Token of the largest logit after `decode` or `prefill`, the lowest on ties; a NaN counts as the largest."""
        return int(self.buffers.best[0])

    @cached_property
    def decode_program(self) -> Program:
        return self.batch_program(1)

    @cached_property
    def prefill_program(self) -> Program:
        return Program(self._recorder(self.chunk).layers(), self.chunk)

    @cached_property
    def stage_programs(self) -> list[Program]:
        return [Program(stage, self.chunk) for stage in self._recorder(self.chunk).stages()]

    @cached_property
    def head_program(self) -> Program:
        rows = self.buffers.head_rows
        return Program(self._recorder(rows).head(), rows)

    def batch_program(self, rows: int) -> Program:
        """Layers and head of `rows` rows in one program; `run_batch` runs it.

        More than one row needs all_logits.
        """
        recorder = self._recorder(rows)
        return Program(recorder.layers() + recorder.head(), rows)

    def run_batch(self, program: Program, tokens: Sequence[int], position: int) -> np.ndarray:
        """Run tokens that start at `position` in one native call; return the logits after each, f32 [len, vocab]."""
        self._enter(tokens, position)
        self._choose_head_rows(0, len(tokens))
        program.run(self.workers, len(tokens))
        return self.buffers.logits[: len(tokens), : self.config.vocab_size]

    def _recorder(self, rows: int) -> Recorder:
        return Recorder(self.config, self.weights, self.buffers, self.scratch, rows, self.isa)

    def run_stages(self, tokens: Sequence[int], position: int) -> Iterator[int]:
        """Run at most a chunk of tokens stage by stage (Recorder.stages); yield the number of each when it is done.

        Between two of them the buffers hold what the next one reads.
        """
        self._enter(tokens, position)
        for number, program in enumerate(self.stage_programs):
            program.run(self.workers, len(tokens))
            yield number

    def decode(self, token: int, position: int) -> np.ndarray:
        """Run one token; return the logits of the next, f32 [vocab] (valid until the next call)."""
        return self.run_batch(self.decode_program, [token], position)[0]

    def prefill(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """Run tokens that start at `position`; return the logits after the last, f32 [vocab] (until the next call)."""
        if len(tokens) == 1:
            return self.decode(tokens[0], position)
        self._check(tokens, position)
        for start in range(0, len(tokens), self.chunk):
            piece = tokens[start : start + self.chunk]
            self._enter(piece, position + start)
            self.prefill_program.run(self.prefill_workers, len(piece))
        return self._logits(len(piece) - 1, 1)[0]

    def score(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """Run at most a chunk of tokens; return the logits after each, f32 [len(tokens), vocab] (until the next call).

        Needs all_logits.
        """
        assert len(tokens) <= self.buffers.head_rows
        self._enter(tokens, position)
        self.prefill_program.run(self.prefill_workers, len(tokens))
        return self._logits(0, len(tokens))

    def resumable(self, position: int) -> int:
        """The last position up to `position` at which another text may go on with what the cache holds before it."""
        return resumable(self.kv, position)

    def _enter(self, tokens: Sequence[int], position: int) -> None:
        self._check(tokens, position)
        self.buffers.tokens[: len(tokens)] = tokens
        self.buffers.state[NUM_ROWS], self.buffers.state[POSITION] = len(tokens), position

    def _check(self, tokens: Sequence[int], position: int) -> None:
        """Refuse what the cache has no room for, and ids that the embedding has no row for."""
        if not tokens:
            raise RequestError("expected at least one token, got none; write something")
        if position + len(tokens) > self.context:
            raise CapacityError(
                f"expected at most {self.context} tokens of context, got {position + len(tokens)}; "
                "shorten the prompt or make more room with --ctx"
            )
        vocabulary = self.config.vocab_size
        outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if outside is not None:
            raise RequestError(
                f"expected token ids below {vocabulary}, the rows of the embedding, got {outside}; "
                "this tokenizer belongs to another model"
            )

    def _logits(self, first: int, count: int) -> np.ndarray:
        self._choose_head_rows(first, count)
        self.head_program.run(self.workers, count)
        return self.buffers.logits[:count, : self.config.vocab_size]

    def _choose_head_rows(self, first: int, count: int) -> None:
        head = self.buffers.head_state
        head[NUM_ROWS] = head[NUM_HEAD_ROWS] = count
        head[HEAD_ROW] = first
