"""A self-contained HTML page: frame, tables, figures, shared by the overview of a data set and the report of a run."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

_PAGE = Path(__file__).with_name("page.html")
_NUMBER = re.compile(r"[-−+]?[\d,]*\d(\.\d+)?(e[-+]?\d+)?%?")


def page(title: str, subtitle: str, body: Iterable[str]) -> str:
    """Return a whole page; `body` is HTML, the titles are text."""
    return Template(_PAGE.read_text()).substitute(
        title=html.escape(title), subtitle=html.escape(subtitle), body="\n".join(body)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return a table of text and numbers; integers, and text that is a number or a percentage, are right-aligned."""

    def cell(value: object) -> str:
        text = f"{value:,}" if isinstance(value, int) else html.escape(str(value))
        return f'<td class="n">{text}</td>' if _NUMBER.fullmatch(text) else f"<td>{text}</td>"

    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<div class="wide"><table>{title}<tr>{names}</tr>{lines}</table></div>'


def figure(png: bytes, caption: str = "", alt: str = "") -> str:
    """Return an embedded picture with its caption; `alt` says what it shows where the caption does not."""
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt or caption)}">{below}</figure>'


def dim(text: str) -> str:
    """Return a remark in muted text."""
    return f'<p class="dim">{html.escape(text)}</p>'
