"""`lutra train`: a door to lutra/train, which needs PyTorch."""

import importlib.util
import sys

import click

from lutra.errors import RequestError


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train a ternary model in PyTorch; the same as python -m lutra.train, whose --help lists the arguments."""
    if importlib.util.find_spec("torch") is None:
        raise RequestError("training expected PyTorch, which is not installed; do: pip install 'lutra[train]'")
    import runpy

    sys.argv = ["lutra train", *arguments]
    runpy.run_module("lutra.train", run_name="__main__", alter_sys=True)
