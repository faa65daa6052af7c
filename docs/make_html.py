"""A hook of mkdocs: equations become MathML, which browsers draw without a script, and Sphinx's roles plain code."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):(?=<code)")


def on_page_content(content: str, /, **_: Any) -> str:
    """A page's HTML, ready to be put into the site's frame."""
    return ROLE.sub("", EQUATION.sub(_mathml, content))


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return convert(html.unescape(found[2]).strip(), display=display)
