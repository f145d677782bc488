"""A stage says in one line what does not fit its other settings."""

from __future__ import annotations

import math

import pytest

from meddap.settings import SettingsError
from pretrain import checks
from pretrain.config import Config


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
