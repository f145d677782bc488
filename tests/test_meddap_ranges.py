"""No number of a configuration is taken for something that it cannot be: each has a range, and each is held to it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import generate
from data_prep.config import RANGES as CT_AND_MRI
from data_prep.config import CtConfig, ImagesConfig, MriConfig
from eval.config import TaskConfig
from eval.ranges import TASK
from meddap import cli
from meddap.ranges import Allowed, check_ranges
from meddap.settings import SettingsError
from pretrain import ranges
from pretrain.config import Config, PairConfig, StageConfig

# Each configuration with its table, and the numbers that need no range: other checks know schedules and steps
# (pretrain/checks.py), and a block may be counted from either end.
SCHEDULE = ("peak", "start", "end", "warmup_steps", "cosine_steps")
CONFIGURATIONS = {
    "model": (Config(name="x", stages={"only": {"steps": 10}}), ranges.MODEL, SCHEDULE),
    "stage": (StageConfig(steps=10), ranges.STAGE, (*SCHEDULE, "steps")),
    "pair": (PairConfig(1.0, 32, 16, 48), ranges.PAIR, ()),
    "task": (TaskConfig(data="x"), TASK, ("blocks",)),
    "ct": (CtConfig(), CT_AND_MRI, ()),
    "mri": (MriConfig(), CT_AND_MRI, ()),
    "images": (ImagesConfig(), CT_AND_MRI, ()),
    "generate": (generate.GenerateConfig(), generate.RANGES, ()),
}


def wrong(allowed: Allowed) -> list:
    """Values outside a range, one for each way of being so."""
    high = allowed.high if math.isfinite(allowed.high) else allowed.low + 8 if math.isfinite(allowed.low) else 8.0
    good = [high if not allowed.rising else high * share for share in (0.5, 0.75, 1.0)][: allowed.length or 1]
    bad = [math.nan, math.inf, -math.inf]
    if math.isfinite(allowed.low):  # the next number where it is so large that half of one is lost
        below = min(allowed.low - 0.5, math.nextafter(allowed.low, -math.inf))
        bad.append(allowed.low if allowed.above else below)
    if math.isfinite(allowed.high):
        bad.append(max(allowed.high + 0.5, math.nextafter(allowed.high, math.inf)))
    if allowed.length is None:
        return bad
    lists = [[each, *good[1:]] for each in bad] + [[*good[:-1], each] for each in bad] + [[], good[:-1], [*good, high]]
    return lists + ([good[::-1]] if allowed.rising else [])


def put(tree: object, key: str, value: object) -> object:
    """A copy of a tree of dataclasses with another value at a key."""
    tree = copy.deepcopy(tree)
    *path, last = key.split(".")
    inner = tree
    for name in path:
        inner = getattr(inner, name)
    setattr(inner, last, value)
    return tree


def has(tree: object, key: str) -> bool:
    """Whether a tree of dataclasses has a key."""
    for name in key.split("."):
        if not hasattr(tree, name):
            return False
        tree = getattr(tree, name)
    return True


def names(tree: object, prefix: str = "") -> Iterator[str]:
    """The keys of all numbers, and lists of numbers, in a tree of dataclasses."""
    for name, value in vars(tree).items():
        if hasattr(value, "__dataclass_fields__"):
            yield from names(value, f"{prefix}{name}.")
        elif (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            or isinstance(value, list)
            and value
            and isinstance(value[0], (int, float))
            and not isinstance(value[0], bool)
        ):
            yield prefix + name


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_number_is_held_to_its_range(name: str) -> None:
    """Defaults fit; NaN, infinity, what lies beyond either end, other lengths and falling ranges do not."""
    tree, table, _ = CONFIGURATIONS[name]
    check_ranges("", tree, table)
    for key, allowed in table.items():
        if not has(tree, key):
            continue
        for value in wrong(allowed):
            with pytest.raises(SettingsError) as caught:
                check_ranges("stages.only.", put(tree, key, value), table)
            message = str(caught.value)
            assert message.startswith(f"stages.only.{key}={value}: expected ") and "\n" not in message


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_number_is_without_a_range(name: str) -> None:
    """A setting that is added needs one: all keys of the dataclasses are in a table or are known to be free."""
    tree, table, free = CONFIGURATIONS[name]
    assert {key for key in names(tree) if key.rpartition(".")[2] not in free} - table.keys() == set()


def test_no_range_is_without_a_number() -> None:
    """A key of a table that no configuration has would check nothing."""
    for table in (table for _, table, _ in CONFIGURATIONS.values()):
        trees = [tree for tree, other, _ in CONFIGURATIONS.values() if other is table]
        assert [key for key in table if not any(has(tree, key) for tree in trees)] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shard-ct", "--input", "IN", "--output", "OUT", "workers=0"], "workers=0: expected 1 or more"),
        (["shard-mri", "--input", "IN", "--output", "OUT", "split.train=nan"], "split.train=nan: expected 0 or more"),
        (["shard-ct", "--input", "IN", "--output", "OUT", "labels.liver=1"], "labels.liver=1: give labels.VALUE=NAME"),
        (["plan", "pretrain/configs/quickstart.yaml", "--mfu", "0"], "--mfu=0.0: expected above 0, up to 1"),
        (["plan", "pretrain/configs/quickstart.yaml", "--gpus-per-node=0"], "--gpus-per-node=0: expected 1 or more"),
        (
            ["sweep", "--checkpoints", "pixels", "--sizes", "32", "0", "--task", "TASK", "--output", "OUT", "data=IN"],
            "--sizes 0: expected 1 or more",
        ),
        (["verify", "IN", "workers=-1"], "workers=-1: expected 1 or more"),
        (["generate", "--output", "OUT", "seed=-1"], "seed=-1: expected 0 or more"),
        (
            ["probe", "--checkpoint", "pixels", "--task", "TASK", "--output", "OUT", "data=IN", "knn.k=[5, 0]"],
            "knn.k=[5, 0]: expected 1 or more",
        ),
    ],
)
def test_a_command_refuses_it_at_once(words: list[str], said: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """One line and status 1 (no process at all would wait for ever), and nothing is written."""
    monkeypatch.setenv("MEDDAP_SALT", "of these tests alone")
    (tmp_path / "in").mkdir()
    places = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out"), "TASK": "eval/configs/quickstart.yaml"}
    assert cli.main([places.get(word, word).replace("data=IN", f"data={tmp_path}") for word in words]) == 1
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "out").exists()
