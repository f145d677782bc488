"""What holds for the tests themselves, and for every file of the project: names, golden files, Python 3.10."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from helpers.golden import GOLDEN, TESTS

import meddap

ROOT = TESTS.parent
FOLDERS = ("meddap", "data_prep", "pretrain", "eval", "slurm", "benchmarks", "tests")
OURS = {*FOLDERS, "helpers"}
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_field_defaults", "_make"}


def files(*folders: str) -> list[Path]:
    """Return the Python files of the folders, in order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(tree: ast.Module) -> Iterator[tuple[ast.AST, str, list[ast.alias]]]:
    """Yield every import as (node, module, names); no names where the module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node, node.module or "", node.names
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def foreign_names(tree: ast.Module) -> set[str]:
    """Return the names by which the file calls modules of the standard library and of others."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] not in OURS}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in OURS:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every private name of ours: imported, an attribute, or a string that names an attribute."""
    foreign = {"self", "cls", "super", *foreign_names(tree)}

    def is_ours(base: ast.expr) -> bool:
        while isinstance(base, ast.Attribute | ast.Call | ast.Subscript):
            base = base.func if isinstance(base, ast.Call) else base.value
        return not (isinstance(base, ast.Name) and base.id in foreign)

    for node, module, names in imports(tree):
        if module.split(".")[0] in OURS and (hidden := [a.name for a in names if is_private(a.name)]):
            yield node.lineno, f"from {module} import {', '.join(hidden)}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and is_ours(node.value):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and len(node.args) > 1 and "attr" in ast.unparse(node.func):
            base, name = node.args[:2]  # getattr, setattr, monkeypatch.setattr …
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and is_ours(base):
                yield node.lineno, ast.unparse(node)


def test_no_test_imports_a_test() -> None:
    """What two tests share lies in tests/helpers."""
    found = [
        f"{path.name}:{node.lineno}: {module}"
        for path in files("tests")
        for node, module, _ in imports(ast.parse(path.read_text()))
        if re.search(r"(^|\.)(test_\w+|conftest)$", module)
    ]
    assert not found, "\n".join(found)


def test_tests_use_public_names() -> None:
    """No test touches a name of ours that begins with an underscore: it is public, or tested through what is."""
    found = [
        f"{path.name}:{line}: {text}"
        for path in files("tests")
        for line, text in private_uses(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


def test_private_names_are_found_however_they_are_written() -> None:
    """The check above sees imports, attributes of modules and objects, and names in strings; not what is not ours."""
    ours = """
from pretrain import train
from pretrain.train import _loop
train._loop()
model_of().blocks[0]._pack
monkeypatch.setattr(train, "_loop", None)
getattr(train.stage(), "_start")
"""
    foreign = """
import os, torch
os._exit(0)
torch.nn._hidden().thing._more
self._thread = pair._replace(left=1).__class__
monkeypatch.setattr(os, "_exit", None)
"""
    assert [line for line, _ in sorted(private_uses(ast.parse(ours)))] == [3, 4, 5, 6, 7]
    assert not list(private_uses(ast.parse(foreign)))


def test_golden_files_are_those_of_their_readme() -> None:
    """Every file is listed with its size and SHA-256, and no other; below 3 MB each and 12 MB together."""
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| `([0-9a-f]{64})` \|$", (GOLDEN / "README.md").read_text(), re.M)
    listed = {name: (int(size), digest) for name, size, digest in rows}
    found = {}
    for path in GOLDEN.iterdir():
        if path.is_file() and path.name != "README.md":
            content = path.read_bytes()
            found[path.name] = len(content), hashlib.sha256(content).hexdigest()
    assert found == listed
    assert max(size for size, _ in found.values()) < 3e6 and sum(size for size, _ in found.values()) < 12e6


def test_every_file_is_python_3_10() -> None:
    """The oldest Python that setup.cfg names can read every file."""
    oldest = re.search(r"python_requires = >=3\.(\d+)", (ROOT / "setup.cfg").read_text())
    assert oldest and oldest[1] == "10"
    for path in files(*FOLDERS):
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def test_citation_and_changelog_name_the_version() -> None:
    """CITATION.cff and the newest section of CHANGELOG.md are about the version that `meddap --version` prints."""
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert cited and newest and cited[1] == newest[1] == meddap.__version__


def test_every_test_says_what_it_states() -> None:
    """Each test has a docstring."""
    silent = [
        f"{path.name}:{node.lineno}: {node.name}"
        for path in files("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)
