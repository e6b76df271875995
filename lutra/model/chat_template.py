"""Where a model's chat template is found, and what stands in for a missing one."""

from __future__ import annotations

from lutra.errors import FileError
from lutra.files.door import refusal, shown
from lutra.files.model_file import ModelFile
from lutra.model.fields import Fields, side_file, side_text

# For models without a template: the transcript form base models have seen.  Such a model knows no end-of-turn token,
# so a reply ends where it begins to write the next turn: give PLAIN_STOP to SamplingParams.stop.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize + ': ' + message.content | trim + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PLAIN_STOP = ("\nUser:", "\nSystem:")

# For BitNet models whose files lost theirs; the form of microsoft/bitnet-b1.58-2B-4T (tokenizer_config.json).
BITNET_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize + ': ' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def find_template(model_file: ModelFile) -> str | None:
    """Return the template a model comes with, None if it has none.

    Places    GGUF: tokenizer.chat_template.  Folders: chat_template.jinja, then tokenizer_config.json's chat_template
              (text, or a list of named ones of which "default" is taken).
    raises    FileError    a template that is not text
    """
    if model_file.kind == "gguf":
        return Fields(model_file.path, model_file.metadata).text("tokenizer.chat_template", "") or None
    text = side_text(model_file.folder, "chat_template.jinja")
    if text is not None:
        return _decoded(model_file, text)
    tokenizer_config = side_file(model_file.folder, "tokenizer_config.json")
    return None if tokenizer_config is None else _stated_template(tokenizer_config)


def _decoded(model_file: ModelFile, text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        path = model_file.folder / "chat_template.jinja"
        raise refusal(path, "file", "UTF-8 text", "other bytes", "get it from its source again") from None


def _stated_template(fields: Fields) -> str | None:
    stated = fields.get("chat_template")
    if isinstance(stated, list):
        named = [row for row in stated if isinstance(row, dict) and row.get("name") == "default"]
        stated = named[-1].get("template") if named else None
    if stated is not None and not isinstance(stated, str):
        raise _not_text(fields, stated)
    return stated


def _not_text(fields: Fields, got: object) -> FileError:
    return refusal(fields.path, "chat_template", "text", shown(got), "get the file from its source again")
