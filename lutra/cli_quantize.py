"""What `lutra quantize` is given, and what it prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lutra import cli_allocate
from lutra.cli_input import read_text
from lutra.cli_show import LoadProgress

if TYPE_CHECKING:
    from lutra.model.quantize import Summary


def quantize(
    model: str, out: str, calib: Any, keep: tuple[str, ...], per_layer: str | None, threads: int | None,
    budget: str | None, bpw: float | None, max_ppl_increase: str | None, choose_from: str | None, deployment: str,
    **options: Any,
) -> str:  # fmt: skip
    """Quantise; return the summary that is to be printed."""
    from lutra.machine import usable_cores
    from lutra.model import quantize as quantizer
    from lutra.model.recipe import Recipe, parse_keep, read_allocation

    kept = (read_allocation(Path(per_layer)) if per_layer else ()) + parse_keep(keep)
    text = None if calib is None else read_text(calib, calib.name)
    threads, report = threads or usable_cores(), ""
    conditions = {"budget": budget, "bpw": bpw, "max_ppl_increase": max_ppl_increase}
    if any(value is not None for value in conditions.values()):
        if options["format"] is not None:
            raise click.UsageError("expected --format or a condition that chooses formats, got both; leave one out")
        asked: dict[str, Any] = {**conditions, "deployment": deployment}
        asked |= {"names": choose_from.split(",")} if choose_from else {}
        with LoadProgress() as progress:
            choice = cli_allocate.for_file(model, Path(out), text, threads, progress, **asked)
        head = choice.formats.pop("head", options["head"])
        options |= {"format": options["format"] or choice.usual, "head": head}
        kept, report = (*choice.formats.items(), *kept), choice.report + "\n"
    if options["format"] is None:
        raise click.UsageError("expected --format, --budget, --bpw or --max-ppl-increase, got none; give one")
    recipe = Recipe(keep=kept, **options)
    if calib is not None and recipe.method is None:
        recipe = Recipe(keep=kept, **options | {"method": "gptq+clip"})
    with LoadProgress() as progress:
        summary = quantizer.quantize(model, out, recipe, text, threads, progress)
    return report + describe(summary)


def describe(summary: "Summary") -> str:
    """Sizes, errors, and the most that memory allows in tokens per second."""
    from lutra.machine import limits

    weight_bytes = sum(row[1] for row in summary.weights.values())
    formats = ", ".join(f"{count} x {name}" for name, count in summary.formats().items())
    rate = limits.roof().gb_per_s * 1e9
    errors = "  ".join(f"{kind} {db:.1f}" for kind, db in summary.sqnr_db().items())
    return "\n".join([
        f"{summary.path}: {summary.file_bytes / 1e6:.1f} MB",
        f"weights    {formats}: {summary.bits_per_weight:.3f} bits each, {weight_bytes / 1e6:.1f} MB",
        f"signal to noise of weights, dB    {errors}",
        f"speed      at most {rate / summary.token_bytes:.0f} tok/s: a token reads {summary.token_bytes / 1e6:.1f} MB, "
        f"this computer {rate / 1e9:.1f} GB/s",
    ])  # fmt: skip


options = [
    click.option("--format", help="Of the layers' weights; `lutra inspect format` lists them."),
    *cli_allocate.options,
    click.option("--method", help="rtn, clip, hlq, gptq+clip, awq+clip, ...; default: what suits the format."),
    click.option("--calib", type=click.File("rb"), help="Text to calibrate on (UTF-8; - is stdin)."),
    click.option("--calib-windows", "windows", type=click.IntRange(min=1), default=64, show_default=True),
    click.option("--calib-tokens", "length", type=click.IntRange(min=8), default=512, show_default=True,
                 help="Tokens of a window."),
    click.option("--head-format", "head", help="Of the head; default: as stored.  The embedding stays as stored."),
    click.option("--keep", multiple=True, metavar="PATTERN=FORMAT",
                 help="Another format, or as-stored, for weights as layers.*.down; the last that fits counts."),
    click.option("--per-layer", type=click.Path(dir_okay=False), help="JSON {weight: format}, by bit allocation."),
    click.option("--damp", type=click.FloatRange(min=0), default=0.01, show_default=True, help="Of GPTQ."),
    click.option("--act-order", is_flag=True, help="GPTQ takes the columns with the largest inputs first."),
    click.option("--static-groups", is_flag=True, help="GPTQ finds the scales of all groups first."),
    click.option("--sequential", is_flag=True, help="GPTQ meets the inputs that quantised layers make."),
    click.option("--lorc", type=click.IntRange(min=0), default=0, metavar="RANK",
                 help="Put a low-rank term of floats beside every weight, of what rounding lost: LoRC."),
    click.option("--threads", type=click.IntRange(min=1), help="Default: the cores this process may use."),
]  # fmt: skip
