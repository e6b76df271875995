"""Models by name from the Hugging Face hub, fetched once and kept in its cache."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from tqdm.std import tqdm  # huggingface_hub reports through bars of this class, and depends on it

from lutra.errors import FileError

FOLDER_FILES = ["*.json", "*.jinja", "*.safetensors"]


def fetch(repo: str, file_part: str | None = None) -> Path:
    """Download a model, or find it in the cache.

    repo       "org/repo"
    file_part  part of the name of the one GGUF file wanted; None takes config.json, tokenizer and safetensors
    returns    the GGUF file, or the folder of a safetensors model
    raises     FileError: no such repository, no network, not exactly one matching file
    """
    patterns = FOLDER_FILES if file_part is None else [f"*{file_part}*.gguf"]
    folder = Path(download(repo, patterns, ignore=["*/*"] if file_part is None else None))
    if file_part is None:
        if not (folder / "config.json").is_file():
            raise FileError(
                f"{repo}: expected config.json and safetensors, found neither; "
                f"if it holds GGUF files, name one by a part of its name: {repo}:Q4_0"
            )
        return folder
    found = sorted(path.relative_to(folder) for path in folder.rglob(f"*{file_part}*.gguf"))
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise FileError(f"{repo}: expected one .gguf file named like '{file_part}', found {names}; say more of it")
    return folder / found[0]


def download(repo: str, patterns: list[str], ignore: list[str] | None) -> str:
    console = Console(stderr=True)
    percentage = TextColumn("{task.percentage:>3.0f} %")
    columns = TextColumn("{task.description}"), BarColumn(), percentage, TimeRemainingColumn()
    progress = Progress(*columns, console=console, transient=True)

    class Bar(RichBar):
        rich_progress = progress

    with progress if console.is_terminal else nullcontext():
        try:
            return snapshot_download(repo, allow_patterns=patterns, ignore_patterns=ignore, tqdm_class=Bar)
        except Exception as error:  # a dozen classes of three libraries, and one thing to say of them all
            reason = " ".join(str(error).split())[:300]
            raise FileError(
                f"could not fetch {repo} from the Hugging Face hub ({type(error).__name__}: {reason}); "
                "check the name and the network, or give the path of a model on this machine"
            ) from error


class RichBar(tqdm):
    """A tqdm bar that shows itself as a row of a rich Progress."""

    rich_progress: Progress
    task: TaskID | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)  # huggingface_hub names its bars; tqdm does not know the word
        super().__init__(*args, **{**kwargs, "leave": False})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Replaces tqdm's drawing; tqdm decides when it is called."""
        if self.task is None:
            self.task = self.rich_progress.add_task("", total=None)
        self.rich_progress.update(self.task, completed=self.n, total=self.total, description=self.desc or "fetching")
        return True
