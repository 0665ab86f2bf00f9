"""Renders the templates beside this file. Every value is escaped, and a name without a value is an error."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.results.names import number_of


def render(name: str, **values: Any) -> str:
    """The template `name`.html.j2 with these values as text; a value that is HTML already must be Markup."""
    return _environment().get_template(f"{name}.html.j2").render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number_of": number_of, "unbroken": _unbroken}
    return environment


def _unbroken(text: Markup) -> Markup:
    """The text with no line break allowed between a number and its percent sign."""
    return text.replace(" %", Markup("&nbsp;%"))
