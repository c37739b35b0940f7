"""The Jinja environment of chat templates: transformers' own one, in which every text is `provenance.Traced`.

Source of the convention: `transformers.utils.chat_template_utils`.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable
from string import Formatter
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from ponder.errors import UserError
from ponder.models.provenance import Traced, joined, own, plain, traced

TODAY = datetime.datetime(2026, 1, 1)
"""The date of every prompt, so that a prompt is the same every day."""


@functools.lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """The template, ready to render. Raises `jinja2.TemplateError`."""
    return _Environment().from_string(source)


class _Code(CodeGenerator):
    """Writes the literals of a template as its own texts."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(f"environment.own({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(f"environment.own({node.data!r})")

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.own({''.join(group)!r})"

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concat((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training masks; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    concat = staticmethod(joined)
    own = staticmethod(functools.lru_cache(maxsize=4096)(own))

    def __init__(self) -> None:
        # Not optimised: a folded constant would be a plain text.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=traced,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.filters = {name: _followed(filter) for name, filter in self.filters.items()}
        self.filters |= {"tojson": _to_json, "join": _join, "indent": _indent}
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda format: traced(TODAY.strftime(format), format),
        }

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "")
        if not isinstance(text, Traced) or name not in ("format", "format_map"):
            return super().wrap_str_format(value)

        def call(*args: Any, **kwargs: Any) -> str:
            args, kwargs = ((), args[0]) if name == "format_map" else (args, kwargs)
            formatter = SandboxedFormatter(self)
            whole = formatter.vformat(plain(text), args, kwargs)
            found = _formatted(formatter, text, args, kwargs)
            return found if found == whole else Traced(whole)

        return call


def _formatted(formatter: SandboxedFormatter, pattern: Traced, args: Any, kwargs: Any) -> Traced:
    """`str.format` with the origin of each piece."""
    parts: list[str] = []
    number = 0
    for literal, name, spec, conversion in Formatter().parse(plain(pattern)):
        # Literals of a pattern are all from where the pattern is: it is a template's own, or no marker counts.
        parts.append(traced(literal, pattern))
        if name is None:
            continue
        if not name or name[0] in ".[":
            name, number = f"{number}{name}", number + 1
        value = formatter.get_field(name, args, kwargs)[0]
        if conversion or spec:
            shown = formatter.convert_field(value, conversion) if conversion else value
            filled = formatter.vformat(spec or "", args, kwargs)
            # A specification with fields may hold text from outside.
            made_of = (value, pattern if "{" not in (spec or "") else filled)
            parts.append(traced(format(plain(shown) if isinstance(shown, str) else shown, filled), made_of))
        else:
            parts.append(traced(value))
    return joined(parts)


def _followed(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose text is the template's own where all that goes into it is."""
    # The first argument of some is the environment or its context.
    skip = 1 if hasattr(filter, "jinja_pass_arg") else 0

    @functools.wraps(filter)
    def call(*args: Any, **kwargs: Any) -> Any:
        found = filter(*args, **kwargs)
        return traced(found, (*args[skip:], *kwargs.values())) if type(found) is str else found

    return call


@jinja2.pass_environment
def _join(environment: _Environment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return traced(d).join(map(traced, value))


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    pad = traced(width) if isinstance(width, str) else own(" " * width)
    newline = own("\n")
    lines = (traced(s) + newline).splitlines()
    rest = [pad + line if line or blank else line for line in lines[1:]]
    return joined((pad if first else "", newline.join([lines[0], *rest])))


def _raise(message: str) -> None:
    raise UserError(f"the chat template refused the messages: {message}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: Jinja's own escapes HTML. What is in a JSON string is never a marker of the template."""
    return Traced(
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )
