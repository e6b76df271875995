"""Draw models by bytes, quality and speed, with the line of those that no other beats in bytes and quality.

    lutra compare float.gguf q4.lutra --text novel.txt -o json > q4.json
    python bench/pareto.py q4.json q3.json others.json --picture pareto.png

Each file holds one model or a list of them: "name" and "perplexity", and "bytes" or "bits_per_weight"; "decode_tok_s"
colours a point, "family" gives it a mark of its own.  A model that several files hold is drawn once.  Prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lutra.bench.report import to_table
from lutra.errors import FileError, LutraError

AXES = {"bytes": "weights read per token, MB", "bits_per_weight": "bits per weight"}
HOW = "make one with lutra compare -o json"
MARKS = "os^Dv<>PX*"
SIZE = (9.0, 5.5)  # inches
CROWD = 12  # models that all have room for their names
EVEN = 0.1  # percent of perplexity below which the axis is linear
Model = Mapping[str, Any]


def read(paths: Sequence[Path]) -> list[Model]:
    """Every model of the files, by name the first.  Raises FileError for what is no such file."""
    found: dict[str, Model] = {}
    for path in paths:
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: expected a JSON file of results, got: {error}; {HOW}") from None
        for model in value if isinstance(value, list) else [value]:
            if not isinstance(model, dict) or not {"name", "perplexity"} <= model.keys():
                raise FileError(f"{path}: expected models with name and perplexity, got others; {HOW}")
            found.setdefault(model["name"], model)
    return list(found.values())


def axis_of(models: Sequence[Model]) -> str:
    """The first of AXES that every model states."""
    found = next((name for name in AXES if all(name in model for model in models)), None)
    if found is None:
        raise FileError(f"expected one of {', '.join(AXES)} in every model, got models without; add it to the files")
    return found


def unbeaten(models: Sequence[Model], axis: str) -> list[Model]:
    """Models that no other beats in both size and perplexity, by size."""
    best, found = float("inf"), []
    for model in sorted(models, key=lambda each: (each[axis], each["perplexity"])):
        if model["perplexity"] < best:
            best = model["perplexity"]
            found.append(model)
    return found


def table(models: Sequence[Model], axis: str) -> str:
    """Markdown, by size; a star marks those on the front."""
    front = {model["name"] for model in unbeaten(models, axis)}
    return to_table([
        {
            "model": short(model["name"]), "MB": _number(model.get("bytes"), 1e-6),
            "bits per weight": _number(model.get("bits_per_weight")), "perplexity": f"{model['perplexity']:.4f}",
            "decode tok/s": _number(model.get("decode_tok_s")), "front": "*" if model["name"] in front else "",
        }
        for model in sorted(models, key=lambda each: each[axis])
    ])  # fmt: skip


def short(name: str) -> str:
    return Path(name).name


def _number(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:.2f}"


def draw(models: Sequence[Model], axis: str, picture: Path, above: str = "", label: str = "") -> None:
    """Write a PNG; needs matplotlib.

    above   name of a model that is not drawn: the height is by how much perplexity is more than its, in percent, and
            even below 0.1 %, where tokens of the text decide
    label   in a crowd, only models on the front are named, and those of this family
    Raises FileError where no model is called `above`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base = next((model["perplexity"] for model in models if model["name"] == above), None)
    if above and base is None:
        raise FileError(f"expected a model called {above}, got {', '.join(m['name'] for m in models)[:80]}; change it")
    models = [model for model in models if model["name"] != above]
    factor, front = 1e-6 if axis == "bytes" else 1.0, unbeaten(models, axis)

    def place(model: Model) -> tuple[float, float]:
        return model[axis] * factor, 100 * (model["perplexity"] / base - 1) if base else model["perplexity"]

    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    axes.plot(*zip(*map(place, front), strict=True), "--", color="0.6", zorder=1)
    rates = [model.get("decode_tok_s", 0.0) for model in models]
    limits = {"vmin": min(rates), "vmax": max(rates)}
    for mark, family in zip(MARKS * len(models), dict.fromkeys(m.get("family", "") for m in models), strict=False):
        members = [model for model in models if model.get("family", "") == family]
        shade = {"c": [m.get("decode_tok_s", 0.0) for m in members], **limits} if any(rates) else {}
        at = zip(*map(place, members), strict=True)
        points = axes.scatter(*at, marker=mark, s=50, zorder=2, label=family, **shade)
    for model in models:
        if len(models) <= CROWD or model in front or model.get("family") == label:
            family = model.get("family", "")
            name = short(model["name"]).removeprefix(f"{family} ").removesuffix(f" {family}")  # its mark says it
            turn = {"rotation": -30, "va": "top"} if model in front else {"rotation": 40, "va": "bottom"}
            axes.annotate(name, place(model), fontsize=7, xytext=(3, 0), textcoords="offset points", **turn)
    axes.set(xlabel=AXES[axis], ylabel=f"perplexity above {above}, %" if base else "perplexity")
    axes.set_yscale(**({"value": "symlog", "linthresh": EVEN} if base else {"value": "log"}))
    if base:
        axes.set_ylim(bottom=-EVEN / 2)
    axes.yaxis.set_major_formatter("{x:g}")
    if any(rates):
        figure.colorbar(points, label="decode, tokens per second")
    if any("family" in model for model in models):
        axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", type=Path, nargs="+")
    options.add_argument("--picture", type=Path, help="a .png file; needs matplotlib")
    options.add_argument("--above", default="", metavar="NAME", help="of the model that the picture compares with")
    options.add_argument("--label", default="", metavar="FAMILY", help="named in the picture beside the front")
    chosen = options.parse_args()
    try:
        models = read(chosen.files)
        axis = axis_of(models)
        print(table(models, axis))
        if chosen.picture:
            draw(models, axis, chosen.picture, chosen.above, chosen.label)
    except LutraError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
