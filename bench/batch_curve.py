"""The curve of tokens per second over the rows of a step, with a picture: where lookup, multiply-add and 16 bits cross.

    python bench/batch_curve.py [--shape 2b] [--rows 1,2,4,8,16,32] [--picture docs/pictures/batch_curve.png]

Prints Markdown, and below it where a curve falls.  The picture needs matplotlib; without it, leave --picture out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tables

from lutra.bench import report
from lutra.bench.case import AUTO, Case, Model
from lutra.bench.curve import Point, curve, dips
from lutra.bench.measure import Say
from lutra.bench.run import run
from lutra.model.weights import Weights

# format:order, both kernel families at 1, 2 and 4 bits
FORMATS = "planes1-row-mins,planes1-row-mins:lut,ternary,ternary:lut,planes4-g32,planes4-g32:lut"
ROWS = [*range(1, 9), *range(10, 33, 2)]


def model(shape: str, word: str) -> Model:
    """The model of a word name:order."""
    name, _, order = word.partition(":")
    return Model(shape, name, order=order or AUTO)


def by_curve(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each format, order and number of threads."""
    curves: dict[str, list[Point]] = {}
    for point in points:
        curves.setdefault(f"{point.case.model.format} {point.order}, {point.case.threads} threads", []).append(point)
    return curves


def shape(name: str, points: Sequence[Point]) -> str:
    """Whether a curve rises all the way, and where it does not."""
    falls = ", ".join(f"{ratio:.2f} of the best before at {rows} rows" for rows, ratio in dips(points))
    return f"{name}: {falls or 'rises all the way'}"


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Save one line for each curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, line in curves.items():
        axes.plot([point.rows for point in line], [point.tokens.median for point in line], marker=".", label=name)
    axes.set(xlabel="rows in a step", ylabel="tokens per second (median of rounds)", xscale="log", yscale="log")
    axes.set_title(f"{next(iter(curves.values()))[0].case.model.shape}: {report.machine_line()}", fontsize=8)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    options = tables.parser(__doc__)
    options.add_argument("--formats", default=FORMATS, help="names joined by commas, each alone or as name:order")
    options.add_argument("--rows", type=tables.counts, default=ROWS)
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--picture", type=Path)
    chosen = options.parse_args()

    def one(case: Case, weights: Weights, tell: Say) -> Sequence[report.Result]:
        return curve(case, weights, chosen.rows, chosen.rounds, tell)

    def work() -> str:
        models = [model(chosen.shape, word) for word in chosen.formats.split(",")]
        results = run(models, one, [chosen.prompt], 1, chosen.threads, tables.say, max(chosen.rows))
        curves = by_curve([point for point in results if isinstance(point, Point)])
        if chosen.picture:
            draw(curves, chosen.picture)
        return "\n".join([report.render(results, "table", tables.command()), "", *map(shape, curves, curves.values())])

    tables.guarded(work)


if __name__ == "__main__":
    main()
