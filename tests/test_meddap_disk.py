"""Files are written whole or not at all, and never in the place of what is not a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from meddap import disk


def test_what_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes no more, or Ctrl-C: the old file is whole, and the room of the new one is free again."""
    path = tmp_path / "a.json"
    disk.write_atomic(path, b"old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def full(_: Path, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(disk, "flush", full)
            with pytest.raises(type(error)):
                disk.write_atomic(path, b"new")
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "the working directory", "the root"])
def test_only_a_file_is_replaced(kind: str, tmp_path: Path) -> None:
    """`--output` may name a folder or a device (root could replace /dev/null by a page): refused, nothing changed."""
    path = {"the working directory": Path(), "the root": Path("/")}.get(kind, tmp_path / "x")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    before = stat.S_IFMT(path.stat().st_mode)
    with pytest.raises(disk.DiskError, match="give the name of a file"):
        disk.write_atomic(path, b"page")
    assert stat.S_IFMT(path.stat().st_mode) == before and len(os.listdir(tmp_path)) <= 1


def test_a_link_to_a_file_is_replaced(tmp_path: Path) -> None:
    """As any other name; also a link that leads nowhere."""
    for target in ("there", "gone"):
        (tmp_path / "there").write_bytes(b"kept")
        link = tmp_path / f"to_{target}"
        link.symlink_to(tmp_path / target)
        disk.write_atomic(link, b"new")
        assert link.read_bytes() == b"new" and (tmp_path / "there").read_bytes() == b"kept"
