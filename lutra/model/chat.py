"""Messages become a prompt: the model's chat template, rendered in a sandbox, with contents that stay contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lutra.errors import RequestError
from lutra.files.door import shown
from lutra.model.chat_template import BITNET_TEMPLATE, PLAIN_TEMPLATE

if TYPE_CHECKING:
    from lutra.model.config import ModelConfig
    from lutra.model.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "Hi"}; further keys (tool_calls, name) are the template's

MAX_TEMPLATE_CHARS = 1 << 18
MAX_DEPTH = 32  # of lists and objects inside a message


def template_for(config: ModelConfig, tokenizer: Tokenizer) -> str:
    """Return the model's template, else BitNet's for BitNet vocabularies, else the plain one (see PLAIN_STOP)."""
    if config.chat_template:
        return config.chat_template
    is_bitnet = config.architecture == "bitnet" and tokenizer.has_special("<|eot_id|>")
    return BITNET_TEMPLATE if is_bitnet else PLAIN_TEMPLATE


def render_chat(
    template: str, messages: Sequence[Message], add_generation_prompt: bool = True, **special: Any
) -> str:
    """Render messages with a Jinja template as transformers' apply_chat_template does.

    special   further names the template may use: bos_token, eos_token, tools, enable_thinking ...
    raises    RequestError    messages without role, a template that is broken, refuses them, or works without end
    """
    from lutra.model.sandbox import Sandbox

    if len(template) > MAX_TEMPLATE_CHARS:
        raise RequestError(f"chat template: expected at most {MAX_TEMPLATE_CHARS} characters, got {len(template)}")
    names: dict[str, Any] = {"tools": None, "documents": None, "bos_token": "", "eos_token": ""} | special
    names |= {"messages": _checked_messages(messages), "add_generation_prompt": add_generation_prompt}
    try:
        return Sandbox().from_string(template).render(names)
    except RequestError:
        raise
    except Exception as error:  # a template is foreign code: it may raise whatever Python can raise
        reason = shown(str(error) or type(error).__name__)
        raise RequestError(
            f"chat template: expected one that renders these messages, got {type(error).__name__}: {reason}; "
            "change the messages or use another template"
        ) from None


def encode_chat(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], add_generation_prompt: bool = True, **special: Any
) -> list[int]:
    """Render messages and return their token ids; special tokens come from the template only.

    A message that contains "<|im_end|>" has those ten characters tokenised as text: nobody ends somebody else's turn.
    BOS is put in front if the model wants one and the template wrote none.
    raises   RequestError    as render_chat
    """
    shielded = [_shielded(tokenizer, message) for message in _checked_messages(messages)]
    ends = [tokenizer.special_text(token) for token in tokenizer.eos_ids[:1]]
    names = {"bos_token": tokenizer.special_text(tokenizer.bos_id), "eos_token": "".join(ends)} | special
    text = render_chat(template, shielded, add_generation_prompt, **names)
    ids = tokenizer.encode(text, add_bos=False, parse_special=True)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


def _checked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError(f"messages: expected a list of at least one message, got {shown(messages)}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f'messages[{i}]: expected {{"role": ..., "content": ...}}, got {shown(message)}')
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list)):
            raise RequestError(f"messages[{i}].content: expected text, got {shown(content)}")
    return [dict(message) for message in messages]


def _shielded(tokenizer: Tokenizer, value: Any, depth: int = 0) -> Any:
    """Shield every text inside a message, tool calls included."""
    if depth > MAX_DEPTH:
        raise RequestError(f"messages: expected at most {MAX_DEPTH} levels of lists and objects, got more")
    if isinstance(value, str):
        return tokenizer.shield(value)
    if isinstance(value, Mapping):
        return {key: _shielded(tokenizer, item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shielded(tokenizer, item, depth + 1) for item in value]
    return value
