"""The training loop: a time budget, a log, checkpoints it can resume from.

The learning rate and the mixture follow the share of the budget used so far, so the decay completes however fast the
machine turns out to be.  Only active time counts: a stopped process does not eat its schedule.

Source    recipe (high peak rate, weight decay off in the second half): BitNet b1.58, arXiv 2402.17764, and
          "The Era of 1-bit LLMs: Training Tips, Code and FAQ", 2024
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from lutra.errors import RequestError
from lutra.train import data
from lutra.train.model import Decoder, DecoderConfig

LONGEST_STEP_S = 10.0  # what one step may add to the active time; more means the process was stopped
LOG_EVERY_STEPS = 50
LOG_FIELDS = ("step", "tokens", "active_s", "learning_rate", "story_share", "train_loss", "novel_loss", "story_loss",
              "story_epoch", "tokens_per_s")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run besides the text."""

    model: DecoderConfig = field(default_factory=DecoderConfig)
    length: int = 512  # tokens per window
    batch_size: int = 8
    peak_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1  # first half of the budget; 0 after
    story_share: tuple[float, float] = (0.15, 0.35)  # at the start, at the end
    noise: float = 0.05
    seed: int = 1
    threads: int = 2


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or minutes of active time, or until a time of day (the first to come)."""

    steps: int | None = None
    minutes: float | None = None
    until: datetime | None = None

    def progress(self, step: int, active_s: float) -> float:
        """Return the share used, 0 .. 1."""
        shares = []
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.minutes is not None:
            shares.append(active_s / (60 * self.minutes))
        if self.until is not None:
            left_s = max(0.0, (self.until - datetime.now(timezone.utc)).total_seconds())
            shares.append(active_s / max(active_s + left_s, 1e-9))
        return min(1.0, max(shares))


def parse_until(text: str) -> datetime:
    """Read HH:MM in UTC as the next such moment.  Raises RequestError for anything else."""
    try:
        hour, minute = (int(part) for part in text.split(":"))
        now = datetime.now(timezone.utc)
        moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError:
        raise RequestError(f"expected --until HH:MM in UTC, got {text!r}; write for example 08:30") from None
    return moment if moment > now else moment + timedelta(days=1)


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Warm up over the first steps, then fall on a cosine to zero at the end of the budget."""
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    return config.peak_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: Decoder, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices decay, norms and the embedding do not."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [{"params": matrices, "decays": True}, {"params": others, "decays": False}]
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


@dataclass
class Run:
    """A training run: model, optimiser, mixture and counters.  Saved and loaded as one file."""

    config: TrainConfig
    model: Decoder
    optimizer: torch.optim.AdamW
    mixture: data.Mixture
    step: int = 0
    active_s: float = 0.0

    @classmethod
    def start(cls, config: TrainConfig, mixture: data.Mixture) -> Run:
        torch.manual_seed(config.seed)
        model = Decoder(config.model)
        return cls(config, model, make_optimizer(model, config), mixture)

    @property
    def tokens(self) -> int:
        return self.step * self.config.batch_size * (self.mixture.novels.shape[1] - 1)

    def save(self, path: Path) -> None:
        """Write the checkpoint; an interrupted write leaves the older one."""
        state = {"config": asdict(self.config), "model": self.model.state_dict(),
                 "optimizer": self.optimizer.state_dict(), "step": self.step, "active_s": self.active_s,
                 "cursors": (self.mixture.novel_cursor, self.mixture.story_cursor)}
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of the same sizes."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.active_s = state["step"], state["active_s"]
        self.mixture.novel_cursor, self.mixture.story_cursor = state["cursors"]

    def take_step(self, progress: float) -> float:
        """Train on one batch; return its loss."""
        config = self.config
        first, last = config.story_share
        inputs, targets = self.mixture.batch(self.step, config.batch_size, first + (last - first) * progress,
                                             config.noise)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, progress)
            group["weight_decay"] = config.weight_decay if group["decays"] and progress < 0.5 else 0.0
        loss = batch_loss(self.model, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()


def batch_loss(model: Decoder, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    """Mean cross-entropy in nats per token, computed under bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.from_numpy(inputs))
    return F.cross_entropy(logits.flatten(0, 1).float(), torch.from_numpy(np.ascontiguousarray(targets)).flatten())


@torch.no_grad()
def held_out_loss(model: Decoder, windows: np.ndarray, batch_size: int = 8) -> float:
    """Mean loss over windows uint16 [windows, length], nats per token."""
    losses = [batch_loss(model, chunk[:, :-1], chunk[:, 1:]).item() * len(chunk)
              for chunk in np.array_split(windows.astype(np.int64), -(-len(windows) // batch_size))]
    return sum(losses) / len(windows)


@torch.no_grad()
def sample_text(model: Decoder, tokenizer: Tokenizer, prompt: str, max_tokens: int = 120, temperature: float = 0.7,
                seed: int = 0) -> str:
    """Continue a prompt until EOS (plain, slow: the whole prefix is computed again for every token)."""
    rng = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    for _ in range(max_tokens):
        logits = model(torch.tensor([ids[-model.config.max_context :]]))[0, -1].float()
        ids.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)))
        if ids[-1] == tokenizer.token_to_id(data.EOS):
            break
    return tokenizer.decode(ids)


@dataclass(frozen=True)
class Prepared:
    """Tokenized text, ready to train on."""

    tokenizer: Tokenizer
    novels: np.ndarray  # uint16 [windows, length + 1]
    tales: list[np.ndarray]
    held_out_novels: np.ndarray  # uint16 [windows, length + 1]
    held_out_stories: np.ndarray  # uint16 [windows, length + 1]


def prepare(corpus: data.Corpus, config: TrainConfig, out: Path) -> Prepared:
    """Train the tokenizer (kept as out/tokenizer.json and reused), then tokenize both kinds of text."""
    path = out / "tokenizer.json"
    if path.exists():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = data.train_tokenizer(corpus, config.model.vocab_size)
        tokenizer.save(str(path))
    window = config.length + 1
    bos, eos = tokenizer.token_to_id(data.BOS), tokenizer.token_to_id(data.EOS)

    def encode_tales(tales: list[str]) -> list[np.ndarray]:
        return [np.array([*e.ids, eos], np.uint16) for e in tokenizer.encode_batch(tales)]

    rng = np.random.default_rng(0)
    held_out_novels = data.novel_windows(data.encode_novels(tokenizer, corpus.held_out_novels), window, bos)
    return Prepared(
        tokenizer,
        data.novel_windows(data.encode_novels(tokenizer, corpus.train_novels), window, bos),
        encode_tales(corpus.train_stories),
        held_out_novels,
        data.story_windows(encode_tales(corpus.held_out_stories), window, rng),
    )


def train(corpus: Path, story_source: Path, out: Path, budget: Budget, config: TrainConfig | None = None,
          resume: bool = False, report: Callable[[str], None] = print, save_every_s: float = 180,
          evaluate_every_s: float = 300) -> Run:
    """Train a decoder; leave out/{tokenizer.json, checkpoint.pt, log.csv}.

    corpus        folder of novels, one .txt per title
    story_source  file or folder of short stories
    out           where checkpoints go; created
    resume        continue from out/checkpoint.pt
    Raises FileError when a text is missing, RequestError when there is nothing to resume.
    """
    config = config or TrainConfig()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log_path = out / "checkpoint.pt", out / "log.csv"
    if resume and not checkpoint.exists():
        raise RequestError(f"expected a checkpoint to resume from, got no {checkpoint}; start without --resume")
    torch.set_num_threads(config.threads)
    text = prepare(data.read_corpus(corpus, story_source), config, out)
    report(f"{len(text.novels)} novel windows, {sum(map(len, text.tales))} story tokens, held out "
           f"{len(text.held_out_novels)} novel and {len(text.held_out_stories)} story windows of {config.length}")
    run = Run.start(config, data.Mixture(text.novels, text.tales, config.model.vocab_size, config.seed))
    if resume:
        run.restore(checkpoint)
    report(f"{sum(p.numel() for p in run.model.parameters())} parameters, step {run.step}")
    log = Log(log_path, append=resume)
    watch = np.linspace(0, len(text.held_out_novels) - 1, 32).astype(int)  # a fixed sample of the held-out novels
    saved_s = evaluated_s = run.active_s
    losses: list[float] = []
    logged_at = run.step, run.active_s
    try:
        while (progress := budget.progress(run.step, run.active_s)) < 1:
            started = time.monotonic()
            losses.append(run.take_step(progress))
            if not math.isfinite(losses[-1]):
                raise RequestError(f"expected a finite loss, got {losses[-1]} at step {run.step}; lower --peak-rate")
            run.active_s += min(time.monotonic() - started, LONGEST_STEP_S)
            if run.step % LOG_EVERY_STEPS == 0:
                row = progress_row(run, progress, losses, logged_at)
                losses, logged_at = [], (run.step, run.active_s)
                if run.active_s - evaluated_s > evaluate_every_s:
                    evaluated_s = run.active_s
                    row["novel_loss"] = held_out_loss(run.model, text.held_out_novels[watch])
                    row["story_loss"] = held_out_loss(run.model, text.held_out_stories)
                    report(sample_text(run.model, text.tokenizer, "Once upon a time"))
                log.write(row)
                report(" ".join(f"{k} {v:.5g}" for k, v in row.items()))
            if run.active_s - saved_s > save_every_s:
                saved_s = run.active_s
                run.save(checkpoint)
    except KeyboardInterrupt:
        report(f"interrupted at step {run.step}; continue with --resume")
    run.save(checkpoint)
    return run


def progress_row(run: Run, progress: float, losses: list[float], logged_at: tuple[int, float]) -> dict[str, float]:
    """One line of the log, without the held-out losses."""
    first, last = run.config.story_share
    tokens = (run.step - logged_at[0]) * run.config.batch_size * run.config.length
    return {"step": run.step, "tokens": run.tokens, "active_s": round(run.active_s, 1),
            "learning_rate": learning_rate(run.config, run.step, progress),
            "story_share": first + (last - first) * progress, "train_loss": sum(losses) / len(losses),
            "story_epoch": run.mixture.story_epoch,
            "tokens_per_s": tokens / max(run.active_s - logged_at[1], 1e-9)}


class Log:
    """A CSV file that is complete after every row."""

    def __init__(self, path: Path, append: bool) -> None:
        self.path = path
        if not (append and path.exists()):
            path.write_text(",".join(LOG_FIELDS) + "\n")

    def write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, LOG_FIELDS, restval="").writerow(row)
