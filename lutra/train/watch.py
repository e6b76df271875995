"""What a run shows while it trains: a row of the log, held-out losses, a sample of its text."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from lutra.train import data
from lutra.train.model import Decoder
from lutra.train.run import Run, batch_loss

LOG_EVERY_STEPS = 50
LOG_FIELDS = ("step", "tokens", "active_s", "learning_rate", "story_share", "train_loss", "novel_loss", "story_loss",
              "story_epoch", "tokens_per_s")
PROMPT = "Once upon a time"


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


class Log:
    """A CSV file that is complete after every row.

    It keeps what an earlier start wrote up to the step resumed from; later rows are of steps that are taken again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if step and path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, LOG_FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; fields it lacks stay empty."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, LOG_FIELDS, restval="", lineterminator="\n").writerow(row)


@dataclass
class Watch:
    """Follows a run: a log row every 50 steps, held-out losses and a sample every few minutes."""

    run: Run
    tokenizer: Tokenizer
    held_out_novels: np.ndarray  # uint16 [windows, length + 1]
    held_out_stories: np.ndarray  # uint16 [windows, length + 1]
    log: Log
    report: Callable[[str], None]
    evaluate_every_s: float
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.logged_at = self.run.step, self.run.active_s
        self.evaluated_s = self.run.active_s

    def step_taken(self, progress: float, loss: float) -> None:
        """Note a step; report when it is time."""
        self.losses.append(loss)
        if self.run.step % LOG_EVERY_STEPS:
            return
        row = self.row(progress)
        if self.run.active_s - self.evaluated_s > self.evaluate_every_s:
            self.evaluated_s = self.run.active_s
            row["novel_loss"] = held_out_loss(self.run.model, self.held_out_novels)
            row["story_loss"] = held_out_loss(self.run.model, self.held_out_stories)
            self.report(sample_text(self.run.model, self.tokenizer, PROMPT))
        self.log.write(row)
        self.report(" ".join(f"{name} {value:.5g}" for name, value in row.items()))
        self.losses, self.logged_at = [], (self.run.step, self.run.active_s)

    def row(self, progress: float) -> dict[str, float]:
        """One line of the log, without the held-out losses."""
        run, schedule = self.run, self.run.config.schedule
        tokens = (run.step - self.logged_at[0]) * run.config.batch_size * run.config.length
        return {"step": run.step, "tokens": run.tokens, "active_s": round(run.active_s, 1),
                "learning_rate": schedule.learning_rate(run.step, progress), "story_share": schedule.stories(progress),
                "train_loss": sum(self.losses) / len(self.losses), "story_epoch": run.mixture.story_epoch,
                "tokens_per_s": tokens / max(run.active_s - self.logged_at[1], 1e-9)}
