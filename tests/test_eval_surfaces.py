"""Figures of a drawn volume: against a second library, against what can be worked out by hand, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from eval.statistics import surfaces

SPACING = (3.0, 1.5, 2.0)


def blobs(seed: int, shape: tuple[int, ...] = (14, 40, 36)) -> np.ndarray:
    """A smooth random shape, some of it cut off by the volume's border."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 3) > 0.03


def test_dice_and_hd95_are_simpleitks() -> None:
    """Overlap by its filter; distances between its contours through its signed distance map."""
    sitk = pytest.importorskip("SimpleITK")

    def image(mask: np.ndarray):
        made = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        made.SetSpacing(SPACING[::-1])
        return made

    def directed(one, other) -> float:
        border = sitk.LabelContour(other, False)
        distance = sitk.SignedMaurerDistanceMap(border, squaredDistance=False, useImageSpacing=True)
        on_border = sitk.GetArrayFromImage(sitk.LabelContour(one, False)) > 0
        return float(np.percentile(np.abs(sitk.GetArrayFromImage(distance)[on_border]), 95))

    for seed in range(4):
        drawn, true = blobs(seed), blobs(seed) ^ (blobs(seed + 50) & blobs(seed + 90))
        found = dict(zip(surfaces.METRICS, surfaces.compare(drawn, true, SPACING, 2.0)))
        overlap, pair = sitk.LabelOverlapMeasuresImageFilter(), (image(drawn), image(true))
        overlap.Execute(*pair)
        assert found["dice"] == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-12)
        assert found["iou"] == pytest.approx(overlap.GetJaccardCoefficient(), abs=1e-12)
        assert found["hd95"] == pytest.approx(max(directed(*pair), directed(*pair[::-1])), rel=1e-5)
        assert found["hd95"] > 0 and 0 < found["nsd"] < 1


def test_a_shifted_box_by_hand() -> None:
    """Moved by three pixels of 2 mm, HD95 is 6 mm; all of the surface lies within 6 mm, not within 5."""
    drawn = np.zeros((10, 30, 30), bool)
    drawn[2:8, 5:20, 5:20] = True
    true = np.roll(drawn, 3, axis=2)
    for tolerance, all_within in ((6.0, True), (5.0, False)):
        dice, iou, distance, within = surfaces.compare(drawn, true, SPACING, tolerance)
        assert (dice, iou, distance) == (pytest.approx(12 / 15), pytest.approx(12 / 18), pytest.approx(6.0))
        assert (within > 1 - 1e-6) == all_within
    same = surfaces.compare(drawn, drawn, SPACING, 0.0)
    assert same.tolist() == [1.0, 1.0, 0.0, 1.0]


def test_one_slice_is_compared_in_its_plane() -> None:
    """The faces above and below a single slice are no surface; spacing along it does not matter."""
    drawn = np.zeros((1, 30, 30), bool)
    drawn[0, 5:20, 5:20] = True
    true = np.roll(drawn, 4, axis=2)
    one, other = (surfaces.compare(drawn, true, (z, 1.0, 1.0), 1.0) for z in (1.0, 50.0))
    assert one.tolist() == other.tolist() and one[2] == 4.0 and one[3] < 0.7


def test_what_is_missing_costs_and_what_is_nowhere_does_not_count() -> None:
    """In neither: no figure. In one alone: zero, and the diagonal of the volume in mm."""
    nothing, box = np.zeros((4, 6, 8), bool), np.ones((4, 6, 8), bool)
    for pair in ((nothing, box), (box, nothing)):
        found = surfaces.compare(*pair, SPACING, 1.0)
        assert found.tolist() == [0, 0, pytest.approx(np.linalg.norm([12, 9, 16])), 0]
        cut = surfaces.compare(*(each[1:2] for each in pair), SPACING, 1.0, whole=(4, 6, 8))
        assert cut.tolist() == found.tolist()
    assert np.isnan(surfaces.compare(nothing, nothing, SPACING, 1.0)).all()
    assert surfaces.compare(box, box, SPACING, 1.0, distances=False).tolist() == [1.0, 1.0]


def test_errors_say_what_is_wrong() -> None:
    """Another grid, a spacing of zero or NaN."""
    box = np.ones((4, 6, 8), bool)
    with pytest.raises(ValueError, match=r"shape \(4, 6, 7\), but the truth has \(4, 6, 8\)"):
        surfaces.compare(box[..., 1:], box, SPACING, 1.0)
    for spacing in ((0.0, 1.0, 1.0), (np.nan, 1.0, 1.0)):
        with pytest.raises(ValueError, match="must be above zero"):
            surfaces.compare(box, box, spacing, 1.0)
