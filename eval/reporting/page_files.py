"""Files beside a page, in a folder of its name: figures for print, interactive maps. The page links them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path

from meddap.disk import write_atomic


class PageFiles:
    """The files of one page; none is written before `write`.

    output  the page: its files lie in <stem>_files/ beside it
    """

    def __init__(self, output: Path) -> None:
        self._folder = output.with_name(f"{output.stem}_files")
        self._files: dict[str, bytes] = {}

    def add(self, name: str, formats: Mapping[str, bytes]) -> dict[str, str]:
        """Take a file in one format or several, by ending; return the address of each. No name is taken twice."""
        stem = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "file"
        free, number = stem, 2
        while any(f"{free}.{ending}" in self._files for ending in formats):
            free, number = f"{stem}-{number}", number + 1
        for ending, payload in formats.items():
            self._files[f"{free}.{ending}"] = payload
        return {ending: f"{self._folder.name}/{free}.{ending}" for ending in formats}

    def links(self, text: str, name: str, formats: Mapping[str, bytes]) -> str:
        """Take a file and return a paragraph that links it: the text, or the text and a link for each format."""
        addresses = self.add(name, formats)
        if len(addresses) == 1:
            return f'<p><a href="{html.escape(next(iter(addresses.values())))}">{html.escape(text)}</a></p>'
        each = ", ".join(f'<a href="{html.escape(at)}">{ending.upper()}</a>' for ending, at in addresses.items())
        return f'<p class="dim">{html.escape(text)}: {each}</p>'

    def write(self) -> None:
        """Write all files. Other files of the folder stay."""
        if self._files:
            self._folder.mkdir(exist_ok=True)
        for name, payload in self._files.items():
            write_atomic(self._folder / name, payload)
