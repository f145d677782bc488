"""The wheel: everything of the packages is in it, nothing else, and it works where it alone is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import meddap

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "eval", "meddap", "pretrain", "slurm")
KINDS = {".py", ".yaml", ".sh", ".html", ".css", ".js", ".md", ".typed"}


def files(folder: Path) -> set[str]:
    """Files of the packages below a folder that somebody wrote."""
    found = (path for package in PACKAGES for path in (folder / package).rglob("*.*") if path.suffix in KINDS)
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the packages, without a network."""
    pytest.importorskip("setuptools", "70.1", reason="needs a setuptools that builds wheels by itself")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("setup.cfg", "pyproject.toml", "README.md", *(["LICENSE"] if (ROOT / "LICENSE").is_file() else [])):
        shutil.copy(ROOT / name, source / name)
    for package in (*PACKAGES, "tests", "benchmarks"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(built), "."]
    done = subprocess.run([sys.executable, "-m", "pip", *command], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_has_every_file_and_no_other(wheel: Path) -> None:
    """Modules, configurations, scripts, the page, the guide, the marker of types; neither tests nor benchmarks."""
    assert wheel.name.startswith(f"meddap-{meddap.__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = files(ROOT)
    assert {f"{package}/py.typed" for package in PACKAGES} <= there
    assert {"meddap/page.html", "slurm/pretrain.sh", "eval/nnunet/GUIDE.md", "eval/reporting/patch_map.js"} <= there
    assert names == there


def test_the_installed_wheel_gives_the_command(wheel: Path, tmp_path: Path) -> None:
    """Away from the checkout `meddap` is there, and reads its own page and configurations."""
    target = tmp_path / "site"
    install = ["install", "--no-deps", "--no-index", "--quiet", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    assert files(target) == files(ROOT)
    alone = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, str(target / "bin" / "meddap")]
    for words in (["--version"], ["generate", "--output", "made", "patients=1", "slices=3", "size=32"]):
        subprocess.run([*command, *words], cwd=tmp_path, env=alone, check=True, capture_output=True)
    shard = ["shard-ct", "--input", "made", "--output", "shards", "split.train=1"]
    subprocess.run([*command, *shard], cwd=tmp_path, env=alone, check=True, capture_output=True)
    overview = [*command, "overview", "shards"]
    subprocess.run(overview, cwd=tmp_path, env=alone, check=True, capture_output=True)
    assert "</html>" in next((tmp_path / "shards").glob("*.html")).read_text()
