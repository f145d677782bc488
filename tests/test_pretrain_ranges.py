"""No number of a configuration is taken for something that it cannot be: each has a range, and each is held to it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest

from meddap.settings import SettingsError
from pretrain import checks, ranges
from pretrain.config import Config, PairConfig, StageConfig
from pretrain.ranges import Allowed

# numbers that may be anything, or that other checks know: schedules and steps (pretrain/checks.py)
FREE = {"seed", "steps"}
SCHEDULE = ("peak", "start", "end", "warmup_steps", "cosine_steps")
STAGE = StageConfig(steps=10)
CONFIG = Config(name="x", stages={"only": {"steps": 10}})


def wrong(allowed: Allowed) -> list:
    """Values outside a range, one for each way of being so."""
    high = allowed.high if math.isfinite(allowed.high) else allowed.low + 8 if math.isfinite(allowed.low) else 8.0
    good = [high if not allowed.rising else high * share for share in (0.5, 0.75, 1.0)][: allowed.length or 1]
    bad = [math.nan, math.inf, -math.inf]
    bad += [allowed.low if allowed.above else allowed.low - 0.5] if math.isfinite(allowed.low) else []
    bad += [allowed.high + 0.5] if math.isfinite(allowed.high) else []
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
        ):
            yield prefix + name


@pytest.mark.parametrize(
    ("tree", "table"),
    [(CONFIG, ranges.MODEL), (STAGE, ranges.STAGE), (PairConfig(1.0, 32, 16, 48), ranges.PAIR)],
    ids=["model", "stage", "pair"],
)
def test_every_number_is_held_to_its_range(tree: object, table: dict[str, Allowed]) -> None:
    """Defaults fit; NaN, infinity, what lies beyond either end, other lengths and falling ranges do not."""
    ranges.check("", tree, table)
    for key, allowed in table.items():
        for value in wrong(allowed):
            with pytest.raises(SettingsError) as caught:
                ranges.check("stages.only.", put(tree, key, value), table)
            message = str(caught.value)
            assert message.startswith(f"stages.only.{key}={value}: expected ") and "\n" not in message


def test_no_number_is_without_a_range() -> None:
    """A setting that is added needs one: all keys of the dataclasses are in a table or are known to be free."""
    found = {key for key in names(CONFIG) if key.rpartition(".")[2] not in SCHEDULE}
    assert found - ranges.MODEL.keys() - FREE == set()
    found = {key for key in names(STAGE) if key.rpartition(".")[2] not in SCHEDULE}
    assert found - ranges.STAGE.keys() - FREE == set()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"optim": {"clip": 0}}, "stages.only.optim.clip=0.0: expected above 0"),
        ({"augment": {"blur_p": [0.5]}}, "stages.only.augment.blur_p=[0.5]: expected 3 numbers, from 0 to 1"),
        ({"crops": {"local_scale": [1.0, 0.3]}}, "2 numbers, above 0, up to 1, the first not above the second"),
        ({"loss": {"koleo_group": 600}}, "stages.only.loss.koleo_group=600: a batch has 512 images"),
        ({"batch_size": 4, "masks": {"probability": 0.1}}, "masks none of the 8 global crops of a batch"),
        ({"optim": {"lr": {"peak": math.nan}}}, "stages.only.optim.lr=nan: give finite numbers"),
    ],
)
def test_a_stage_says_what_does_not_fit(entry: dict, said: str) -> None:
    """One line with key, value and what is expected."""
    with pytest.raises(SettingsError) as caught:
        checks.stage(Config(name="x", stages={"only": {"steps": 10, **entry}}), "only")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_anchor_coarser_than_its_student_is_refused() -> None:
    """For the stage's own sizes and for each pair of a mixture."""
    pair = {"global_size": 512, "local_size": 112}
    for crops in ({"global_size": 512}, {"mixture": [{"global_size": 256, "local_size": 112}, pair]}):
        stages = {"first": {"steps": 10}, "only": {"steps": 10, "crops": crops, "gram": {"teacher_from": "first"}}}
        checks.stage(Config(name="x", stages=stages), "only")
        stages["only"]["gram"] = {"teacher_from": "first", "size": 448}
        with pytest.raises(SettingsError, match="gram.size=448: coarser than the student's crops of 512 pixels"):
            checks.stage(Config(name="x", stages=stages), "only")


@pytest.mark.parametrize("name", ["..", "", ".", "a/../../b", "/tmp/x"])
def test_a_run_stays_below_its_output(name: str) -> None:
    """A name that leads elsewhere is refused, for runs and for stages."""
    with pytest.raises(SettingsError, match="name=.*give another name"):
        checks.stage(Config(name=name, stages={"only": {"steps": 10}}), "only")
    with pytest.raises(SettingsError, match="give it a plain name"):
        checks.stage(Config(name="x", stages={name: {"steps": 10}}), name)
