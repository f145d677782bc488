"""The house: which package and which wing of it may import which. Arrows point down, and there is no circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.house import PAGE, WINGS, modules, page

ROOT = Path(__file__).resolve().parent.parent
# What a package may import of others; None: everything.
ALLOWED = {
    "meddap": {},
    "data_prep": {"meddap": None},
    "pretrain": {"meddap": None, "data_prep": {"schema"}},
    "eval": {
        "meddap": None,
        # the contract of shards, and the readers of NIfTI
        "data_prep": {"schema", "identity", "config", "volumes", "figures", "discovery"},
        "pretrain": {"config", "runtime", "model", "data", "weights", "build", "optim", "schedules"},
    },
    "slurm": {"meddap": None, "pretrain": {"config", "checks"}},
}
FORBIDDEN = {
    "meddap": {"torch", "pydicom", "nibabel"},
    "data_prep": {"torch"},
    "pretrain": {"pydicom", "nibabel"},
}
MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, also inside functions, and the strings that `import_module` is given."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
            "resolve_name",
        ):
            name = node.args[0]
            yield name.value if isinstance(name, ast.Constant) else f"? {path.name}:{node.lineno}"


def known(name: str) -> str | None:
    """The module of ours that holds `name`: a module's own dotted name, or that of something in it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


ARROWS = {
    module: sorted({target for name in imported(path) if (target := known(name)) and target != module})
    for module, path in MODULES.items()
}


def wing(module: str) -> str:
    """The part of a dotted name behind its package."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("package", WINGS)
def test_a_package_imports_only_what_the_design_allows(package: str) -> None:
    """Every import of another package of ours, or of a library that the package must not know, is found and refused."""
    wrong = []
    for module, path in MODULES.items():
        if module.partition(".")[0] != package:
            continue
        for target in ARROWS[module]:
            other = target.partition(".")[0]
            allowed = ALLOWED[package].get(other, set())
            if other != package and allowed is not None and wing(target) not in allowed:
                wrong.append(f"{module} imports {target}")
        libraries = {name.partition(".")[0] for name in imported(path)}
        wrong += [f"{module} imports {name}" for name in libraries & FORBIDDEN.get(package, set())]
    assert not wrong


@pytest.mark.parametrize("package", WINGS)
def test_arrows_between_wings_point_down(package: str) -> None:
    """A wing imports only wings that stand before it in WINGS, and each file belongs to a wing."""
    order, wrong = WINGS[package], []
    for module, targets in ARROWS.items():
        if module.partition(".")[0] != package or not wing(module):
            continue
        if wing(module) not in order:
            wrong.append(f"{module} is in no wing of WINGS")
            continue
        for target in targets:
            ours = target.partition(".")[0] == package and wing(target) in order
            if ours and order.index(wing(target)) > order.index(wing(module)):
                wrong.append(f"{module} imports {target}")
    assert not wrong


def circles(arrows: dict[str, list[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one)."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        seen, todo = set(), [start]
        while todo:
            todo += [target for target in arrows.get(todo.pop(), []) if target not in seen and not seen.add(target)]
        reach[start] = seen
    groups = {frozenset({one} | {other for other in reach[one] if one in reach.get(other, ())}) for one in arrows}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_there_is_no_circle() -> None:
    """No module imports itself by way of others, imports in functions counted."""
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    assert circles(ARROWS) == []


def test_no_import_hides_behind_a_computed_name() -> None:
    """Whatever `import_module` imports is written out, so that the tests above see it.

    The table of commands is text on purpose: it may name what stands above it, as nothing but `python -m meddap`
    imports the module that holds it.
    """
    hidden = [module for module, path in MODULES.items() for name in imported(path) if name.startswith("?")]
    assert hidden == ["meddap.cli"]
    assert [module for module, targets in ARROWS.items() if "meddap.cli" in targets] == ["meddap.__main__"]


def test_the_schema_needs_little() -> None:
    """data_prep.schema imports numpy, blosc2, the standard library and of meddap only the base of our errors and the
    reader of JSON, which are standard library alone, so that anything can read shards."""
    ground = {"meddap.errors", "meddap.records"}
    assert set(ARROWS["data_prep.schema"]) <= ground and all(set(ARROWS[module]) <= ground for module in ground)
    names = [name for module in ("data_prep.schema", *ground) for name in imported(MODULES[module])]
    libraries = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert libraries - {"meddap"} == {"numpy", "blosc2"}


def test_the_design_shows_the_house_as_it_is() -> None:
    """docs/design.md lists every file with the first line of its docstring (`python tests/helpers/house.py`)."""
    text = PAGE.read_text()
    assert page(text) == text
