"""Jinja for templates that strangers wrote: no way out to Python, and no way to run or grow without end.

Jinja's immutable sandbox keeps templates away from Python's insides, but does not bound work.  Here a rendering has a
budget of steps (loop turns, calls, filters) and of characters written, and an operation that could make a value
explode is measured before it happens.  Filters are an allow-list: those that chat templates use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lutra.errors import RequestError

MAX_CHARS = 1 << 22  # of one value, and of all that one rendering writes
MAX_STEPS = 1 << 18  # a second or two of loop turns and calls
MAX_INTEGER = 1 << 20  # as an argument: widths, counts
MAX_BITS = 1024  # of an integer

FILTERS = (
    "abs attr capitalize count d default dictsort e escape first float indent int items join last length list lower "
    "map max min reject rejectattr replace reverse round safe select selectattr sort string title trim truncate unique "
    "upper urlencode wordcount"
).split()
WRITABLE = "texts, numbers, lists and dictionaries as values"  # the text of nested namespaces may have no end
GLOBALS = ("range", "dict", "namespace", "cycler", "joiner")
DENIED_METHODS = ("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill")  # they widen


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of ONE rendering: it holds what is left of the budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        # not optimized: folding constants would run parts of the template while it is compiled, outside the budget
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_write,
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        self.steps_left = MAX_STEPS
        self.chars_left = MAX_CHARS
        filters = {name: self.filters[name] for name in FILTERS}
        filters |= {"tojson": tojson, "_kept": _kept, "_joined": _joined}
        self.filters = {name: self._measured(name, function) for name, function in filters.items()}
        self.filters["_turns"] = self._turns
        self.globals = {name: self.globals[name] for name in GLOBALS}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = Budgeted().visit(super()._parse(source, name, filename))
        return template

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method from a template."""
        name = getattr(function, "__name__", "")
        if name in DENIED_METHODS:
            raise _refusal("the methods chat templates use", name)
        args = tuple(map(_listed, args))
        self._check_call(name, (getattr(function, "__self__", None), *args, *kwargs.values()))
        result = super().call(context, function, *args, **kwargs)
        return result if isinstance(result, Namespace) else _weighed(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute left `operator` right."""
        BINOP_CHECKS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def spend(self, steps: int) -> None:
        """Draw on the budget of steps."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise _refusal(f"{MAX_STEPS} loop turns and calls", "more")

    def write(self, value: Any) -> Any:
        """Draw what a template writes on the budget of characters."""
        self.chars_left -= _weight(value)
        if self.chars_left < 0:
            raise _refusal(f"{MAX_CHARS} characters of output", "more")
        return value

    def _turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(1)
            yield item

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps Jinja's marks: whether a filter wants the environment or the context
        def measured(*args: Any, **kwargs: Any) -> Any:
            args = tuple(map(_listed, args))
            self._check_call(name, (*args, *kwargs.values()))
            if any(isinstance(value, Namespace) for value in args):
                raise _refusal(WRITABLE, "a namespace")
            return _weighed(_listed(function(*args, **kwargs)))

        return measured

    def _check_call(self, name: str, args: tuple[Any, ...]) -> None:
        """Refuse a call whose result could be far larger than its arguments."""
        self.spend(1 + sum(map(_size, args)) // 1024)
        if any(isinstance(value, int) and abs(value) > MAX_INTEGER for value in args):
            raise _refusal(f"{MAX_INTEGER} as an argument", "a larger number")
        if name in GROWTH:
            _check_chars(GROWTH[name](*(value for value in args if isinstance(value, (str, list, tuple, int)))))


class Budgeted(NodeTransformer):
    """Makes a parsed template draw on the budget wherever it loops, joins, collects or writes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise _refusal("plain loops", "a recursive one")
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_turns", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "_kept", [], [], None, None, lineno=node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "_kept", [], [], None, None, lineno=node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        is_value = node.ctx == "load"  # not the names that are assigned to
        return nodes.Filter(node, "_kept", [], [], None, None, lineno=node.lineno) if is_value else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # so that `finalize` sees it


class Generation(Extension):
    """{% generation %} … {% endgeneration %}: transformers' mark of what the assistant wrote; here just its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as transformers' filter does: nothing escaped for HTML."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    chunks, chars = [], 0
    for chunk in encoder.iterencode(value):
        chunks.append(chunk)
        chars += len(chunk)
        _check_chars(chars)
    return "".join(chunks)


@pass_context
def _write(context: Context, value: Any) -> Any:
    environment = context.environment
    assert isinstance(environment, Sandbox)
    return environment.write(value)


def _joined(parts: list[Any]) -> str:
    _weighed(parts)
    return "".join(map(str, parts))


def _kept(value: Any) -> Any:
    return value  # as a measured filter: weighed when it is made, so that no list ever holds too much


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _refusal(expected: str, got: str) -> RequestError:
    return RequestError(f"chat template: expected at most {expected}, got {got}; use another template")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 0


def _listed(value: Any) -> Any:
    """Turn what has no length to measure, or none that `_size` knows, into a list."""
    is_lazy = isinstance(value, (Iterator, range, KeysView, ValuesView, ItemsView))
    return list(value) if is_lazy and not isinstance(value, LoopContext) else value


def _weight(value: Any) -> int:
    """Return about how many characters a value takes as text; counting stops beyond MAX_CHARS.

    Not its length: a list may hold one list twice, which holds one twice, and so on: small, but a text without end.
    """
    weight, waiting = 0, [value]
    while waiting and weight <= MAX_CHARS:
        item = waiting.pop()
        weight += len(item) if isinstance(item, str) else 4
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, Namespace):
            raise _refusal(WRITABLE, "a namespace")
    return weight


def _check_chars(chars: int) -> None:
    if chars > MAX_CHARS:
        raise _refusal(f"{MAX_CHARS} characters", "more")


def _weighed(value: Any) -> Any:
    _check_chars(_weight(value))
    return value


def _check_sum(left: Any, right: Any) -> None:
    _check_chars(_weight(left) + _weight(right))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int):
        _check_chars(left * _weight(right))
    elif isinstance(right, int):
        _check_chars(right * _weight(left))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise _refusal(f"{MAX_BITS} bits in a number", "more")


def _check_format(left: Any, right: Any) -> None:
    """Check text % values: any number in the text, or among the values where it has a *, may be a width."""
    if isinstance(left, str):
        values = right if isinstance(right, tuple) else (right,)
        widths = [MAX_CHARS if len(digits) > 7 else int(digits) for digits in re.findall("[0-9]+", left)]
        widths += [abs(value) for value in values if isinstance(value, int) and "*" in left]
        _check_chars(sum(widths) + len(left) + _weight(values))


# Arguments given by name come in any order: each bound below takes the worst of them.


def _replace_growth(text: Any, *rest: Any) -> int:
    text, parts = str(text), list(map(str, rest))
    return len(text) + max(map(text.count, parts), default=0) * max(map(len, parts), default=0)


def _join_growth(first: Any, *rest: Any) -> int:
    """Bound separator.join(items) and items | join(separator)."""
    return _weight([first, *rest]) + _size(first) * max(map(_size, rest), default=0)


def _indent_growth(text: Any, *rest: Any) -> int:
    widths = [_size(width) if isinstance(width, str) else int(width) for width in rest]
    return len(text) + (text.count("\n") + 1) * max(widths, default=4)


BINOP_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_sum, "*": _check_product, "**": _check_power, "%": _check_format,
}
GROWTH: dict[str, Callable[..., int]] = {"replace": _replace_growth, "join": _join_growth, "indent": _indent_growth}
