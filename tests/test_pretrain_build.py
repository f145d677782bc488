"""From the configuration to what it describes: every setting reaches its place under its own name."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from pretrain import build
from pretrain.config import (
    AugmentConfig,
    ColourAugmentConfig,
    CropsConfig,
    HeadConfig,
    IntensityConfig,
    LossConfig,
    ModelConfig,
    StageConfig,
)
from pretrain.config import SliceAugmentConfig as SliceConfig

# settings that others read: `build.draws`, `build.crop_variants`, and those of slices and colours themselves
ELSEWHERE = {"rope_rescale_per", "mixture", "slice", "colour"}
OTHERS = {"ffn": "swiglu", "position": "learned", "scale_of": "side", "drop_path_over_depth": "linear"}


def other(name: str, value: Any) -> Any:
    """A value that differs from a default."""
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*map(lambda number: number + 0.25, value)] or ["t1", "t2"]
    return 3 if value is None else value + 2


def changed(default: Any) -> dict[str, Any]:
    """Another value for every field of a section."""
    names = [field.name for field in fields(default) if field.name not in ELSEWHERE]
    return {name: other(name, getattr(default, name)) for name in names}


def plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_every_setting_of_a_model_reaches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student has all of them; of a network that is not trained, drop path and rescaled coordinates are off."""
    monkeypatch.setattr(build, "VisionTransformer", lambda **given: given)
    settings = changed(ModelConfig())
    given = build.backbone(ModelConfig(**settings), student=True)
    assert given == settings
    assert build.backbone(ModelConfig(**settings)) == {**given, "drop_path": 0.0, "rope_rescale": None}


def test_every_setting_of_a_head_reaches_it() -> None:
    """Its fields are parameters of the head."""
    wanted = {field.name for field in fields(HeadConfig)}
    assert wanted <= set(build.ProjectionHead.__init__.__annotations__)


@pytest.mark.parametrize("section", ["crops", "augment", "slice", "colour"])
def test_every_setting_of_views_reaches_them(section: str) -> None:
    """Those of crops, of augmentation, of the whole slice and of colours, each alone."""
    sections = {
        "crops": CropsConfig(),
        "augment": AugmentConfig(),
        "slice": SliceConfig(),
        "colour": ColourAugmentConfig(),
    }
    default = sections[section]
    for name, value in changed(default).items():
        part = replace(default, **{name: value})
        inside = section in ("slice", "colour")
        given = {"augment": AugmentConfig(**{section: part})} if inside else {section: part}
        views = build.view_settings(StageConfig(steps=1, **given), IntensityConfig())
        assert getattr(getattr(views, section) if inside else views, name) == plain(value), name


def test_every_setting_of_the_losses_reaches_a_step() -> None:
    """But for the schedule of the local crops, which gives each step its own number, and what makes the targets."""
    settings = changed(replace(LossConfig(), dino_local=0.0, targets=None))
    stage = StageConfig(steps=1, loss=LossConfig(**settings))
    now = {"teacher_temp": 0.05, "dino_local": 0.25, "gram_weight": 1.5}
    weights = build.step_weights(stage, now, {"grade": (1.0, 2.0)}, "prototypes")
    for name in settings.keys() - {"dino_local", "targets", "centre_momentum"}:
        assert getattr(weights, name) == settings[name], name
    assert (weights.teacher_temp, weights.dino_local, weights.gram) == (0.05, 0.25, 1.5)
    assert weights.class_weights == {"grade": (1.0, 2.0)}
    assert build.step_weights(stage, now).class_temp is None  # of prototypes that are classes alone
