"""The house: the wings of each package from the ground up, and the picture of them in docs/design.md.

Run `python tests/helpers/house.py` to write the picture into the page.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- house: written by `python tests/helpers/house.py` -->\n", "<!-- /house -->"
# Each package's wings, folders or single files, from the ground up: a wing imports those before it, and itself.
WINGS = {
    "meddap": ["errors", "records", "console", "settings", "ranges", "disk", "page", "cli", "__main__"],
    "data_prep": [
        *("schema", "config", "identity", "workers", "volumes", "figures"),
        *("dicom", "discovery", "sharding", "synthetic"),
        *("command", "shard_ct", "shard_mri", "shard_images", "merge", "verify", "overview", "generate"),
    ],
    "pretrain": [
        *("schedules", "shares", "ranges", "config", "checks"),
        *("runtime", "objective", "model", "data", "optim"),
        *("distillation", "parallel", "build", "weights", "runs", "corpora", "networks", "online_knn", "planning"),
        *("stage", "train", "export", "plan"),
    ],
    "eval": [
        *("ranges", "config", "statistics", "encoders", "data", "contract", "networks", "probes", "intake"),
        *("reporting", "kept", "nnunet", "curation"),
        *("validation", "fold_fits", "probe", "milestones", "choose", "compare"),
        *("embed", "predict", "curate", "sweep", "report"),
    ],
    "slurm": ["cluster", "pipeline", "submit"],
}


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    paths = [path for package in WINGS for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def picture() -> str:
    """The files of all wings, from the ground up, each with the first line of its docstring."""
    return "".join(f"```\n{package}/\n" + "".join(_lines(package)) + "```\n" for package in WINGS)


def page(text: str) -> str:
    """A page with today's picture between its two marks."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + picture() + END + rest.partition(END)[2]


def _lines(package: str) -> Iterator[str]:
    for wing in WINGS[package]:
        folder = ROOT / package / wing
        if not folder.is_dir():
            yield _line(folder.with_suffix(".py"), 2)
            continue
        about = _about(folder / "__init__.py")
        yield f"  {wing}/".ljust(28) + f"{about}\n" if about else f"  {wing}/\n"
        for path in sorted(folder.rglob("*.py")):
            if path.name != "__init__.py":
                yield _line(path, 4, str(path.relative_to(folder)))


def _line(path: Path, indent: int, name: str = "") -> str:
    return (" " * indent + (name or path.name)).ljust(28) + _about(path) + "\n"


def _about(path: Path) -> str:
    """The first line of a module's docstring without its full stop."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].removesuffix(".")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
