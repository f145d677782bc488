"""Worker processes run the code of the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, pkgutil, sys
from data_prep.workers import Workers
if __name__ == "__main__":
    before = dict(os.environ)
    with Workers(1, 60, 1.0, ["data_prep.schema"]) as workers:
        (_, found), = workers.map(pkgutil.resolve_name, ["data_prep.schema:__file__"])
    assert os.environ == before
    print(found)
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the working directory")
def test_a_folder_of_our_name_where_one_stands_is_not_imported(tmp_path: Path) -> None:
    """`meddap shard-ct` from within another checkout, or beside a folder called data_prep, runs the installed code."""
    (tmp_path / "data_prep").mkdir()
    (tmp_path / "data_prep" / "__init__.py").write_text("raise SystemExit('another version')")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "elsewhere/script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and Path(done.stdout.strip()) == ROOT / "data_prep" / "schema.py", done.stderr
