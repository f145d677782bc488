"""A library that is not installed, for this process and for those that it starts."""

from __future__ import annotations

from pathlib import Path

import pytest


def absent(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module that cannot be imported in the place of an installed one; `folder` holds it."""
    (folder / f"{module}.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(str(folder))
