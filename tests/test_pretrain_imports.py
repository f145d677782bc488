"""The arrows between the rooms: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("data_prep", "pretrain", "eval", "slurm")
# Each room's allowed imports from other rooms; None allows the whole room.
ALLOWED = {
    "data_prep": {},
    "pretrain": {"data_prep": {"disk", "schema", "settings"}},
    "eval": {
        "data_prep": {
            *("disk", "figures", "page", "schema", "settings", "identity"),
            *("config", "images", "labelmaps", "scaling", "slicing", "volume"),  # the readers of NIfTI
        },
        "pretrain": {
            *("encoder", "vit", "intensity", "checkpoint", "config", "labels", "machine", "metrics"),
            *("adopt", "published"),  # published weights as encoders
            *("build", "optim", "schedules"),  # encoders trained further
        },
    },
    "slurm": {"data_prep": {"disk", "settings"}, "pretrain": {"config"}},
}
FORBIDDEN = {"data_prep": {"torch"}, "pretrain": {"pydicom", "nibabel"}}


def imported(path: Path) -> list[tuple[str, str]]:
    """(package, module) of every absolute import in a file, also of those inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple((alias.name.split(".") + [""])[:2]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            found += [(package, module.split(".")[0] or alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_design_allows(room: str) -> None:
    """Every import of another room, or of a package that the room must not know, is found and refused."""
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for package, module in imported(path):
            strange = package in ROOMS and package != room and module not in ALLOWED[room].get(package, set())
            if strange or package in FORBIDDEN.get(room, set()):
                wrong.append(f"{path.relative_to(ROOT)} imports {package}.{module}")
    assert not wrong


def test_the_schema_needs_little() -> None:
    """data_prep.schema imports numpy, blosc2 and the standard library only, so that anything can read shards."""
    import sys

    packages = {package for package, _ in imported(ROOT / "data_prep" / "schema.py")}
    assert packages - set(sys.stdlib_module_names) == {"numpy", "blosc2"}
