"""Draw the loss curve of a training log: `python -m lutra.train.curve LOG.csv PICTURE.png`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

CURVES = (("train_loss", "training mixture", "0.7", ""), ("novel_loss", "held-out novels", "tab:blue", "o"),
          ("story_loss", "held-out stories", "tab:orange", "o"))


def read_curve(log: Path, field: str) -> tuple[list[float], list[float]]:
    """Return (millions of tokens, nats per token) of the rows that have the field."""
    with log.open() as file:
        rows = [row for row in csv.DictReader(file) if row[field]]
    return [int(row["tokens"]) / 1e6 for row in rows], [float(row[field]) for row in rows]


def draw(log: Path, picture: Path) -> None:
    """Write the training and held-out losses of a log as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for field, label, color, marker in CURVES:
        axes.plot(*read_curve(log, field), label=label, color=color, marker=marker, markersize=3)
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)", ylim=(None, 6))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, format="png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lutra.train.curve LOG.csv PICTURE.png")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
