"""Renders a page: one HTML file that needs no network, with its texts, style, data and scripts in it.

Texts of users reach a page in two ways only: through the template, which escapes them, and as JSON, which the page's
script inserts as text. The content security policy allows the scripts of the page and no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = "templates"


def render_document(
    name: str, content: Mapping[str, Any], data: Any, script: str, *, like: str | None = None
) -> str:
    """Return a page, as HTML.

    Args:
        name: name of the page; its template extends page.html, its style follows page.css, its script page.js.
        content: what the template shows.
        data: plain data for the page's script.
        script: the script that draws the charts, from `vega_bundle`.
        like: name of the page whose style and script it shares; by default it has its own.
    """
    own_script = _read("page.js", f"{like or name}.js")
    return _environment().get_template(f"{name}.html").render(
        content,
        style=_read("page.css", f"{like or name}.css"),
        data=_json_in_script(data),
        scripts=[script, own_script],
        hashes=[_hash(text) for text in (script, own_script)],
    )  # fmt: skip


@cache
def _environment() -> Environment:
    """Return the environment of the templates, which escapes what it inserts."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, _TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _read(*names: str) -> str:
    """Return the text of files of this package, one after the other."""
    folder = files(__package__) / _TEMPLATES
    return "".join((folder / name).read_text("utf-8") for name in names)


def _json_in_script(data: Any) -> str:
    """Return JSON in which nothing can end the script element around it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _hash(script: str) -> str:
    """Return the source expression of a content security policy that allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
