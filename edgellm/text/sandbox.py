"""Where chat templates run: jinja2's immutable sandbox, with bounds on work and on single allocations.

A template is a program that arrives with the model. jinja2 keeps it from reaching Python's internals; this
keeps it from running for ever (loop passes and macro calls are counted) and from asking one operation for
an absurd amount of memory (repeats, powers, paddings and format widths are limited). Many small doublings
of a string are stopped only by the limits on loops and on the output.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 100_000  # loop passes and macro calls in one rendering; a long chat needs some thousands
MAX_SIZE = 1 << 20  # largest repeat, padding or width that a template may ask for
_LONG_NUMBER = re.compile(r"\d{7,}")
_SIZED_FILTERS = ("batch", "center", "format", "indent", "slice", "truncate", "wordwrap")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """What transformers offers to chat templates, with a budget of steps for each rendering."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self._used = threading.local()
        self.filters["tojson"] = _to_json
        for name in _SIZED_FILTERS:
            self.filters[name] = _sized(name, self.filters[name])
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _now
        self.globals["namespace"] = _PlainNamespace
        del self.globals["lipsum"]

    def start(self) -> None:
        """Give this thread's next rendering a full budget."""
        self._used.steps = 0

    def step(self) -> bool:
        """Called on every loop pass and macro call; always true, so that it can stand in a condition."""
        self._used.steps += 1
        if self._used.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")
        return True

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.body.insert(0, _count_step())
            if loop.test is not None:  # runs for the passes that it rejects, too
                loop.test = nodes.And(_call_step(), loop.test)
        for macro in tree.find_all(nodes.Macro):
            macro.body.insert(0, _count_step())
        for block in tree.find_all(nodes.CallBlock):
            block.body.insert(0, _count_step())
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_sizes(*args, *kwargs.values())
        if getattr(__obj, "__name__", "") in ("format", "format_map"):
            _check_format(getattr(__obj, "__self__", None))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            _check_format(left)
        elif operator == "**" and not (abs(left) <= MAX_SIZE and abs(right) <= 64):
            raise SecurityError("it computes a power that is too large")
        elif operator == "*":
            counts = [v for v in (left, right) if isinstance(v, int)]
            parts = [v for v in (left, right) if hasattr(v, "__len__")]
            if parts and counts and len(parts[0]) * counts[0] > MAX_SIZE:
                raise SecurityError(f"it repeats something {counts[0]} times")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """{% generation %} marks the assistant's text for training; for a prompt it is its contents."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it on the instance

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    """namespace() without underscored names, which would shadow Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # self comes in args, so that self= stays a free name
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"it sets {name!r} on a namespace")


def _call_step() -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)


def _count_step() -> nodes.Node:
    return nodes.ExprStmt(_call_step())


def _check_sizes(*values: Any) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_SIZE:
            raise SecurityError(f"it uses the number {value} as a size")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _LONG_NUMBER.search(text):
        raise SecurityError("it formats with a width that is too large")


def _sized(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps jinja2's mark of the filters that take the environment first
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_sizes(*args, *kwargs.values())
        if name == "format":
            _check_format(args[0])
        return function(*args, **kwargs)

    return checked


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escapes, which would change what the model reads (as transformers does)."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def _compile(template: str) -> tuple[ChatEnvironment, jinja2.Template]:
    environment = ChatEnvironment()
    return environment, environment.from_string(template)


def generate(template: str, names: dict[str, Any]) -> Iterator[str]:
    """The rendered text in parts. Raises jinja2.TemplateError, and whatever a wrong template provokes."""
    environment, compiled = _compile(template)
    environment.start()
    return compiled.generate(names)
