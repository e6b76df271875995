"""A training run: the model, its optimiser, its place in the text.  Saved and restored as one file."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lutra.errors import FileError
from lutra.train import data
from lutra.train.model import Decoder, DecoderConfig
from lutra.train.schedule import Schedule


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run besides the text and the budget."""

    model: DecoderConfig = field(default_factory=DecoderConfig)
    schedule: Schedule = field(default_factory=Schedule)
    length: int = 512  # tokens per window
    batch_size: int = 8
    seed: int = 1
    threads: int = 2


def batch_loss(model: Decoder, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    """Mean cross-entropy in nats per token of int64 [B, T] arrays, computed under bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.from_numpy(inputs))
    return F.cross_entropy(logits.flatten(0, 1).float(), torch.from_numpy(np.ascontiguousarray(targets)).flatten())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `Run.save` wrote.  Raises FileError when the file is damaged."""
    try:
        state = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        state = None
    if not isinstance(state, dict) or not {"config", "model", "optimizer", "step", "active_s", "cursors"} <= set(state):
        raise FileError(f"expected a checkpoint of a training run, got a damaged {path}; train again without --resume")
    return state


def make_optimizer(model: Decoder, rate: float) -> torch.optim.AdamW:
    """AdamW in two groups: matrices decay, norms and the embedding do not."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [{"params": matrices, "decays": True}, {"params": others, "decays": False}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


@dataclass
class Run:
    """One run and its counters."""

    config: RunConfig
    model: Decoder
    optimizer: torch.optim.AdamW
    mixture: data.Mixture
    step: int = 0
    active_s: float = 0.0

    @classmethod
    def start(cls, config: RunConfig, mixture: data.Mixture) -> Run:
        """Begin with random weights that the seed decides."""
        torch.manual_seed(config.seed)
        model = Decoder(config.model)
        return cls(config, model, make_optimizer(model, config.schedule.peak_rate), mixture)

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.config.batch_size * self.config.length

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
        state = read_checkpoint(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.active_s = state["step"], state["active_s"]
        self.mixture.novel_cursor, self.mixture.story_cursor = state["cursors"]

    def take_step(self, progress: float) -> float:
        """Train on one batch; return its loss."""
        schedule = self.config.schedule
        inputs, targets = self.mixture.batch(self.step, self.config.batch_size, schedule.stories(progress),
                                             schedule.noise)
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.learning_rate(self.step, progress)
            group["weight_decay"] = schedule.decay(progress) if group["decays"] else 0.0
        loss = batch_loss(self.model, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()
