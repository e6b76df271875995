"""MARLIN's question for CPUs: how wide times faster than 16-bit weights is each format, at 1 to 128 rows in a step?

    python bench/speedup.py [--shape 1b] [--rows 1,2,4,8,16,32,64,128] [--picture docs/pictures/speedup.png]

Prints Markdown: tokens per second of the 16-bit model, and what each format makes of them, by the median of rounds in
which both ran turn by turn.  Below it: where multiply-add overtakes lookup.  The picture needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tables
from batch_curve import model

from lutra.bench import report
from lutra.bench.case import Model
from lutra.bench.speedup import Pair, crossings, lines, speedups

# format:order; lookup beside multiply-add at 1, 1.6 and 4 bits
FORMATS = (
    "planes1-row-mins:mad,planes1-row-mins:lut,ternary:mad,ternary:trit5,ternary:lut,"
    "planes2-g64,planes3-row,planes4-g32:mad,planes4-g32:lut,planes4-g128"
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def draw(found: Sequence[Sequence[Pair]], path: Path) -> None:
    """Save one line for each model, dashed for lookup; the ratio of bytes is a tick at the left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for pairs in found:
        rows, ratios = [pair.few.rows for pair in pairs], [pair.ratio.median for pair in pairs]
        style = "-" if pairs[0].few.order == "mad" else "--"
        (line,) = axes.plot(rows, ratios, style, marker=".", label=pairs[0].name)
        axes.plot([rows[0]], [pairs[0].bytes_ratio], marker="_", markersize=14, color=line.get_color())
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(rows, [str(number) for number in rows])
    wide = found[0][0].wide.case
    axes.set(xlabel="rows in a step", ylabel=f"times faster than {wide.model.format} weights", ylim=(0, None))
    axes.set_title(f"{wide.model.shape}, {wide.threads} threads: {report.machine_line()}", fontsize=8)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def sentence(name: str, rows: int | None) -> str:
    """Where multiply-add overtakes one lookup."""
    return f"{name}: " + ("faster than mad at every size" if rows is None else f"mad leads from {rows} rows on")


def main() -> None:
    options = tables.parser(__doc__)
    options.set_defaults(shape="1b")
    options.add_argument("--formats", default=FORMATS, help="names joined by commas, each alone or as name:order")
    options.add_argument("--wide", default="f16", choices=("f16", "bf16", "f32"), help="what they are compared with")
    options.add_argument("--rows", type=tables.counts, default=list(ROWS))
    options.add_argument("--picture", type=Path)
    chosen = options.parse_args()

    def work() -> str:
        models = [model(chosen.shape, word) for word in chosen.formats.split(",")]
        wide, results, notes = Model(chosen.shape, chosen.wide), [], []
        for threads in chosen.threads:
            found = speedups(models, wide, threads, chosen.rows, chosen.rounds, tables.say)
            results += lines(found)
            notes += [f"{threads} threads, {sentence(*crossing)}" for crossing in crossings(found).items()]
        if chosen.picture:
            draw(found, chosen.picture)
        return "\n".join([report.render(results, "table", tables.command()), "", *notes])

    tables.guarded(work)


if __name__ == "__main__":
    main()
