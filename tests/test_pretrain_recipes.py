"""Every number of every published recipe beside its reference.

tests/recipes/RECIPE.yaml has exactly one row for each setting that changes the results of a stage:

equal      KEY: [value, where] or [value, where, arithmetic on the reference's numbers]
schedules  KEY: the reference's own numbers, from which its schedule is built and compared value by value. `times` is
           its factor for the numbers in `times_of`; `within` the deviation allowed, as a share of the highest value
differs    KEY: {ours, theirs, where, why}
ours       KEY: {value, why}: the reference has no such setting

`where` is FILE:LINE or FILE:NAME, FILE being a short name in `files`. `clock` holds the reference's steps of an epoch,
its epochs, and the step at which ours begins. `with` names groups of rows in `blocks` or common.yaml. A recipe with a
`parent` has rows only for what differs from that one, KEY: {value, rule, why}.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from meddap.settings import SettingsError
from pretrain import build, checks, config

CONFIGS = Path(config.__file__).parent / "configs"
FILES = {path.stem: yaml.safe_load(path.read_text()) for path in (Path(__file__).parent / "recipes").glob("*.yaml")}
COMMON = FILES.pop("common")
PLAIN = sorted(name for name, file in FILES.items() if "parent" not in file)
SCALED = sorted(name for name, file in FILES.items() if "parent" in file)
SCHEDULES = {f"optim.{name}": name for name in build.SCHEDULES}
SCHEDULES |= {"loss.dino_local": "dino_local", "gram.weight": "gram_weight"}
CONSTANT = {"start": None, "end": None, "warmup_steps": 0, "cosine_steps": None}  # where a row names a peak alone
NOT_SET = {"draws"}  # in a recipe, but no setting


@dataclass(frozen=True)
class Row:
    kind: str
    value: Any
    where: str = ""
    why: str = ""
    theirs: Any = None
    rule: str | None = None


def loaded(recipe: str) -> config.Config:
    parent = FILES[recipe].get("parent", recipe)
    return config.load(CONFIGS / f"{recipe}.yaml", ["data.root=x", *FILES[parent].get("words", [])])


def settings_of(found: config.Config, stage: str) -> dict[str, Any]:
    """Everything that changes results, by key; those of the stage without its name."""
    return {key.removeprefix(f"stages.{stage}."): value for key, value in config.recipe(found, stage).items()}


@functools.cache
def published(recipe: str, stage: str) -> dict[str, Any]:
    return settings_of(loaded(recipe), stage)


def number(expression: str, **names: float) -> float:
    """The value of arithmetic in a row."""
    return eval(str(expression), {"__builtins__": {}, "sqrt": math.sqrt}, names)


def is_written(exact: float, written: float) -> bool:
    """Whether `written` is `exact`, rounded at the last digit that is written."""
    unit = 10.0 ** Decimal(repr(written)).as_tuple().exponent
    return exact == written or (isinstance(written, float) and abs(exact - written) <= 0.5001 * unit)


def same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def rows(recipe: str, stage: str) -> dict[str, Row]:
    """The rows of a stage, one for each key. Raises AssertionError where a key has two."""
    table: dict[str, Row] = {}
    for block in (FILES[recipe].get("all_stages", {}), FILES[recipe]["stages"][stage]):
        groups = [group(recipe, name) for name in block.get("with", [])]
        for key, row in (each for part in (*groups, block) for each in rows_of(part)):
            assert key not in table, f"tests/recipes/{recipe}.yaml, {stage}: {key} has two rows; leave one"
            table[key] = row
    return table


def group(recipe: str, name: str) -> dict[str, Any]:
    if name in FILES[recipe].get("blocks", {}):
        return FILES[recipe]["blocks"][name]
    why, values = COMMON[name]["why"], COMMON[name]["values"]
    return {"ours": {key: {"value": value, "why": why} for key, value in values.items()}}


def rows_of(part: dict[str, Any]) -> Iterator[tuple[str, Row]]:
    for key, (value, where, *rule) in part.get("equal", {}).items():
        yield from spread(key, Row("equal", value, where, rule=rule[0] if rule else None))
    for key, row in part.get("differs", {}).items():
        yield from spread(key, Row("differs", row["ours"], row["where"], row["why"], row["theirs"]))
    for key, row in part.get("ours", {}).items():
        yield from spread(key, Row("ours", row["value"], why=row["why"]))
    for key, row in part.get("schedules", {}).items():
        yield from ((f"{key}.{name}", Row("schedules", row, row["where"])) for name in ("peak", *CONSTANT))


def spread(key: str, row: Row) -> Iterator[tuple[str, Row]]:
    """A schedule that is written as a mapping has a row for each of its settings."""
    if key not in SCHEDULES:
        yield key, row
        return
    for name, value in (CONSTANT | row.value).items():
        yield f"{key}.{name}", Row(row.kind, value, row.where, row.why, "another schedule")


def faults(recipe: str, stage: str, found: config.Config, table: dict[str, Row]) -> Iterator[str]:
    """What of a stage is not as its rows say."""
    settings, at = settings_of(found, stage), f"{recipe} {stage}"
    yield from (f"{at} {key}={settings[key]}: no row covers it; add one" for key in sorted(settings.keys() - table))
    yield from (f"{at} {key}: its row is stale, there is no such setting" for key in sorted(table.keys() - settings))
    for key in sorted(settings.keys() & table):
        row, value = table[key], settings[key]
        if row.kind != "schedules" and not same(value, row.value):
            yield f"{at} {key}={value}, expected {row.value} ({row.where or row.why})"
        if row.kind == "differs" and same(row.value, row.theirs):
            yield f"{at} {key}: its row says that it differs, and names {row.value} twice ({row.where})"
        if row.rule is not None and not is_written(number(row.rule), row.value):
            yield f"{at} {key}: its row says {row.value}, and {row.rule} = {number(row.rule):g} ({row.where})"
    if schedules := FILES[recipe]["stages"][stage].get("schedules"):
        merged = checks.stage(found, stage)
        for key, row in schedules.items():
            for wrong in schedule_faults(FILES[recipe]["stages"][stage]["clock"], key, row, merged):
                yield f"{at} {key}{wrong} ({row['where']})"


def schedule_faults(clock: dict, key: str, row: dict, found: config.StageConfig) -> Iterator[str]:
    """Where a schedule leaves the reference's, or the reference's numbers in the second kind, which is ours."""
    ours = build.schedules(found).get(SCHEDULES[key], np.zeros(0))
    section, name = key.split(".")
    for kind, within in ({clock["kind"]: row.get("within")} | {"second": 1e-9}).items():
        theirs = reference(row, clock | {"kind": kind}, found, getattr(getattr(found, section), name))
        if ours.shape != theirs.shape:
            yield f": {len(ours)} steps, expected {len(theirs)}"
        elif (apart := np.abs(ours - theirs)).max() > within * np.abs(theirs).max():
            step = int(apart.argmax())
            yield f"={ours[step]:.6g} at step {step}, expected {theirs[step]:.6g}"


def reference(row: dict, clock: dict, found: config.StageConfig, written: config.ScheduleConfig) -> np.ndarray:
    """(steps,) values of the reference's own schedule, cut to ours.

    Its peak and end are rounded as our file writes them, by at most a thousandth.
    """
    scale = {name: number(row.get("times", 1), batch=found.batch_size) for name in row.get("times_of", [])}
    peak, end = (row.get(name, row["peak"]) * scale.get(name, 1) for name in ("peak", "end"))
    ours = [value for value in (written.peak, written.end) if value]
    peak, end = (
        next((value for value in ours if is_written(each, value) and math.isclose(each, value, rel_tol=1e-3)), each)
        for each in (peak, end)
    )
    first, total = clock["kind"] == "first", clock["epoch"] * clock["epochs"]
    warmup = clock["epoch"] * row.get("warmup_epochs", 0)
    falling = clock["epoch"] * row["cosine_epochs"] if "cosine_epochs" in row else total - warmup
    phase = np.arange(falling) / max(falling, 1) if first else np.linspace(0, 1, falling)
    rising = np.linspace(row.get("start", 0), peak, warmup, endpoint=first)
    values = np.concatenate([rising, end + (peak - end) * (1 + np.cos(np.pi * phase)) / 2])
    values = np.concatenate([values, np.full(total - len(values), end)])
    start = clock.get("from_step", 0)
    return values[start : start + found.steps]


def scaled_faults(recipe: str, stage: str, found: config.Config) -> Iterator[str]:
    """What of a scaled recipe's stage is neither its parent's nor as its rows say."""
    file, at = FILES[recipe], f"{recipe} {stage}"
    table = file.get("all_stages", {}) | file["stages"][stage]
    parent, settings = published(file["parent"], stage), settings_of(found, stage)
    yield from (f"{at} {key}: its row is stale, there is no such setting" for key in sorted(table.keys() - settings))
    for key, value in settings.items():
        row = table.get(key, {"value": parent[key], "why": f"that of {file['parent']}"})
        if not same(value, row["value"]):
            yield f"{at} {key}={value}, expected {row['value']} ({row['why']})"
        if key in table and same(row["value"], parent[key]):
            yield f"{at} {key}: its row says that it differs, and {file['parent']} has {parent[key]} as well"
        if "rule" in row and not is_written(number(row["rule"]), row["value"]):
            yield f"{at} {key}: its row says {row['value']}, and {row['rule']} = {number(row['rule']):g}"


def check(recipe: str, stage: str, found: config.Config) -> Iterator[str]:
    if recipe in SCALED:
        return scaled_faults(recipe, stage, found)
    return faults(recipe, stage, found, rows(recipe, stage))


STAGES = [(recipe, stage) for recipe in (*PLAIN, *SCALED) for stage in loaded(recipe).stages]


def test_every_published_recipe_has_a_file_of_rows() -> None:
    """Those that are named after a paper; configurations of our own have no reference."""
    papers = re.compile("dinov3|flexict|meddinov3|mm_dinov2")
    assert {path.stem for path in CONFIGS.glob("*.yaml") if papers.match(path.stem)} == {*PLAIN, *SCALED}


@pytest.mark.parametrize(("recipe", "stage"), STAGES)
def test_every_setting_is_its_references_or_says_why_not(recipe: str, stage: str) -> None:
    """Each is in one row, has the value that stands there, and each schedule has the reference's values."""
    wrong = list(check(recipe, stage, loaded(recipe)))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("recipe", PLAIN)
def test_every_row_says_where_or_why(recipe: str) -> None:
    """A row that speaks of the reference names a file of `files` and a line or name, all others give a reason."""
    place = re.compile(rf"({'|'.join(FILES[recipe]['files'])}):(\d+(-\d+)?|[A-Z_a-z][\w .-]*)")
    for stage in FILES[recipe]["stages"]:
        for key, row in rows(recipe, stage).items():
            assert row.kind not in ("differs", "ours") or row.why, f"{recipe} {stage} {key}: why?"
            parts = [] if row.kind == "ours" else row.where.split(", ")
            assert all(place.fullmatch(part) for part in parts), f"{recipe} {stage} {key}: where is {row.where}?"
            if row.kind == "schedules" and "differs" in row.value:
                ours, theirs = row.value.get("times", 1), row.value["differs"]
                assert number(ours, batch=512) != number(theirs["theirs"], batch=512), f"{recipe} {stage} {key}: equal"
                assert theirs["why"] and all(place.fullmatch(part) for part in theirs["where"].split(", "))


@pytest.mark.parametrize(("recipe", "stage"), STAGES)
def test_every_step_has_the_batch_that_its_rate_was_scaled_for(recipe: str, stage: str) -> None:
    """At every crop size of a mixture; rates that follow a batch follow this one."""
    found = loaded(recipe)
    merged = checks.stage(found, stage)
    sizes = build.batch_plan(merged, found.seed).sizes
    assert (sizes == merged.batch_size).all(), f"{recipe} {stage}: {min(sizes)} to {max(sizes)} of {merged.batch_size}"


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [changed(value[0]), *value[1:]] if value else ["other"]
    if isinstance(value, dict):
        return {key: changed(each) if number == 0 else each for number, (key, each) in enumerate(value.items())}
    if isinstance(value, str):
        return f"{value}_2"
    return 7 if value is None else value + 1 if isinstance(value, int) else value * 1.01 + 0.001 * (value == 0)


def altered(found: config.Config, stage: str, key: str, value: Any) -> config.Config:
    """A copy in which one setting of a stage has another value."""
    found = copy.deepcopy(found)
    *sections, name = key.split(".")
    if (sections + [name])[0] in {field.name for field in fields(config.Config)}:
        setattr(functools.reduce(getattr, sections, found), name, value)
    else:
        entry = functools.reduce(lambda part, section: part.setdefault(section, {}), sections, found.stages[stage])
        entry[name] = value
    return found


@pytest.mark.parametrize("recipe", (*PLAIN, *SCALED))
def test_a_number_changed_by_hand_is_noticed(recipe: str) -> None:
    """Each of forty settings drawn from all stages, given another value, is refused or named in a fault."""
    found = loaded(recipe)
    covered = [(stage, key) for stage in found.stages for key in published(recipe, stage) if key not in NOT_SET]
    for stage, key in random.Random(recipe).sample(covered, 40):
        value, section = changed(published(recipe, stage)[key]), key.rpartition(".")[0]
        names = (f" {key}=", f" {section}=" if section in SCHEDULES else f" {key}:")
        try:
            wrong = check(recipe, stage, altered(found, stage, key, value))
            noticed = any(name in each for each in wrong for name in names)
        except SettingsError:
            continue
        assert noticed, f"{recipe} {stage} {key}={value} went unnoticed"


def test_rows_that_are_missing_stale_or_untrue_are_noticed() -> None:
    """The message names recipe, stage, key, and what is wrong."""
    recipe, stage = "dinov3_vitl16", "gram"
    found, table = loaded(recipe), rows(recipe, stage)
    for key, row, said in (
        ("optim.clip", None, "optim.clip=30.0: no row"),
        ("optim.clips", Row("ours", 1), "optim.clips: its row is stale"),
        ("optim.clip", Row("equal", 3.0, "im1k:112"), "optim.clip=30.0, expected 3.0 (im1k:112)"),
        ("optim.clip", Row("differs", 30.0, "anchor:145", "", 30.0), "names 30.0 twice"),
        ("optim.clip", Row("equal", 30.0, "anchor:145", rule="3 * 9"), "3 * 9 = 27"),
    ):
        rest = {name: each for name, each in table.items() if name != key}
        (message,) = faults(recipe, stage, found, rest | ({} if row is None else {key: row}))
        assert message.startswith(f"{recipe} {stage} {key}") and said in message
