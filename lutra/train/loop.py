"""The training loop: prepare the text, take steps until the budget is used, keep checkpoints.

Only active time counts: a stopped process does not eat its schedule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from lutra.errors import RequestError
from lutra.train import data
from lutra.train.run import Run, RunConfig
from lutra.train.schedule import Budget
from lutra.train.watch import Log, Watch

LONGEST_STEP_S = 10.0  # what one step may add to the active time; more means the process was stopped
WATCHED_NOVEL_TOKENS = 16384  # held-out text measured while training


@dataclass(frozen=True)
class Text:
    """Tokenized text, ready to train on."""

    tokenizer: Tokenizer
    novels: np.ndarray  # uint16 [windows, length + 1]
    tales: list[np.ndarray]  # uint16 [tokens] each
    held_out_novels: np.ndarray  # uint16 [windows, length + 1], an even sample
    held_out_stories: np.ndarray  # uint16 [windows, length + 1]


def make_tokenizer(corpus: data.Corpus, vocab_size: int, path: Path) -> Tokenizer:
    """Load the tokenizer of an earlier start, or train and save it."""
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = data.train_tokenizer(corpus, vocab_size)
    tokenizer.save(str(path))
    return tokenizer


def tokenize(corpus: data.Corpus, tokenizer: Tokenizer, length: int) -> Text:
    """Turn both kinds of text, both parts, into windows of length + 1 tokens."""
    bos, _ = data.bos_and_eos(tokenizer)
    held_out = data.novel_windows(data.encode_novels(tokenizer, corpus.held_out_novels), length + 1, bos)
    return Text(
        tokenizer,
        data.novel_windows(data.encode_novels(tokenizer, corpus.train_novels), length + 1, bos),
        data.encode_tales(tokenizer, corpus.train_stories),
        data.spread(held_out, WATCHED_NOVEL_TOKENS // length),
        data.story_windows(data.encode_tales(tokenizer, corpus.held_out_stories), length + 1, np.random.default_rng(0)),
    )


def train(corpus: Path, story_source: Path, out: Path, budget: Budget, config: RunConfig | None = None,
          resume: bool = False, report: Callable[[str], None] = print, save_every_s: float = 180,
          evaluate_every_s: float = 300) -> Run:
    """Train a decoder; leave out/{tokenizer.json, checkpoint.pt, log.csv}.

    corpus        folder of novels, one .txt per title
    story_source  file or folder of short stories
    out           where checkpoints go; created
    resume        continue from out/checkpoint.pt
    Raises FileError when a text is missing, RequestError when there is nothing to resume or the loss is not finite.
    Ctrl-C ends the run early, with its checkpoint.
    """
    config = config or RunConfig()
    checkpoint = out / "checkpoint.pt"
    if resume and not checkpoint.exists():
        raise RequestError(f"expected a checkpoint to resume from, got no {checkpoint}; start without --resume")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    texts = data.read_corpus(corpus, story_source)
    text = tokenize(texts, make_tokenizer(texts, config.model.vocab_size, out / "tokenizer.json"), config.length)
    run = Run.start(config, data.Mixture(text.novels, text.tales, config.model.vocab_size, config.seed))
    if resume:
        run.restore(checkpoint)
    report(f"{text.novels.size} novel tokens, {sum(map(len, text.tales))} story tokens, "
           f"{sum(p.numel() for p in run.model.parameters())} parameters, from step {run.step}")
    watch = Watch(run, text.tokenizer, text.held_out_novels, text.held_out_stories,
                  Log(out / "log.csv", run.step), report, evaluate_every_s)
    try:
        take_steps(run, budget, watch, checkpoint, save_every_s)
    except KeyboardInterrupt:
        report(f"interrupted at step {run.step}; continue with --resume")
    run.save(checkpoint)
    return run


def take_steps(run: Run, budget: Budget, watch: Watch, checkpoint: Path, save_every_s: float) -> None:
    """Train until the budget is used; save now and then."""
    saved_s = run.active_s
    while (progress := budget.progress(run.step, run.active_s)) < 1:
        started = time.monotonic()
        loss = run.take_step(progress)
        if not math.isfinite(loss):
            raise RequestError(f"expected a finite loss, got {loss} at step {run.step}; resume with a lower rate")
        run.active_s += min(time.monotonic() - started, LONGEST_STEP_S)
        watch.step_taken(progress, loss)
        if run.active_s - saved_s > save_every_s:
            saved_s = run.active_s
            run.save(checkpoint)
