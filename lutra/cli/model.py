"""Which model a word on the command line means, and loading it."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lutra.cli.show import LoadProgress
from lutra.errors import FileError

if TYPE_CHECKING:
    from lutra.engine.llm import LLM

SHIPPED = Path(__file__).parents[1] / "models"  # folders of the models that come with lutra
HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[\w.-]+))?", re.ASCII)  # ./x and ../x are paths
FILE_SUFFIXES = (".gguf", ".safetensors", ".lutra")


def is_model(word: str) -> bool:
    """Tell whether a lone word names a model: a path that exists, org/repo, or org/repo:part-of-file-name."""
    return os.path.exists(word) or HUB_NAME.fullmatch(word) is not None


def resolve(name: str | None) -> str | None:
    """Find the path of the model that `name` means, downloading it if it lives on the Hugging Face hub.

    name     None: the default model · a path · the name of a shipped model · org/repo · org/repo:part-of-file-name
    returns  a path, or None for the default model
    raises   FileError if nothing has that name, or it cannot be fetched
    """
    if name is None or os.path.exists(name):
        return name
    if re.fullmatch(r"[\w-]+", name) and (SHIPPED / name).is_dir():
        return str(SHIPPED / name)
    hub_name = HUB_NAME.fullmatch(name)
    if hub_name is None or name.endswith(FILE_SUFFIXES):
        raise FileError(
            f"expected a model, got '{name}', which is no existing file or folder; "
            "give a .gguf file, a folder with config.json, or org/repo, and put a prompt of several words in quotes"
        )
    from lutra.cli.hub import fetch

    return str(fetch(hub_name["repo"], hub_name["file"]))


def load(
    model: str | None,
    threads: int | None = None,
    context: int | None = None,
    verbose: bool = False,
    kv: str = "f16",
    head: str | None = None,
    prefill_threads: int | None = None,
) -> "LLM":
    """Load the model that a word means, with a progress bar; `verbose` says on stderr what it is."""
    path = resolve(model)
    from lutra.engine.llm import LLM

    with LoadProgress() as progress:
        llm = LLM.load(
            path, threads=threads, context=context, progress=progress, kv=kv, head=head,
            prefill_threads=prefill_threads,
        )  # fmt: skip
    if verbose:
        click.echo(llm.describe(), err=True)
    return llm
