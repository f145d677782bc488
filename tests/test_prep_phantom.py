"""Synthetic patients differ as people do in fat, arms and how they lie; their organs stay inside the body."""

import numpy as np
import pytest
from scipy import ndimage

from data_prep.synthetic import phantom


@pytest.fixture(scope="module")
def patients() -> list[phantom.Phantom]:
    return [phantom.make(np.random.default_rng([7, number]), 12, 64) for number in range(30)]


def dense(plane: np.ndarray) -> np.ndarray:
    """Return the mask of what is denser than air and table: trunk, and arms where they lie beside it."""
    return ndimage.binary_opening(ndimage.binary_fill_holes(plane > -250), iterations=2)


def test_the_same_seed_gives_the_same_patient(patients: list[phantom.Phantom]) -> None:
    """To the voxel; another number is another patient."""
    again = phantom.make(np.random.default_rng([7, 3]), 12, 64)
    assert np.array_equal(again.hu, patients[3].hu) and np.array_equal(again.labels, patients[3].labels)
    assert not np.array_equal(patients[3].labels, patients[4].labels)


def test_organs_lie_in_the_body(patients: list[phantom.Phantom]) -> None:
    """No organ has a voxel outside of the body."""
    for made in patients:
        for plane, labels in zip(made.hu, made.labels):
            assert (labels[~ndimage.binary_dilation(dense(plane))] == 0).all()


def test_fat_differs_from_patient_to_patient(patients: list[phantom.Phantom]) -> None:
    """The share of a trunk that is fat: from a rim to a third of it."""
    shares = []
    for made in patients:
        body = np.stack([dense(plane) for plane in made.hu])
        shares.append(((made.hu > -160) & (made.hu < -40) & (made.labels == 0) & body).sum() / body.sum())
    assert min(shares) < 0.15 and max(shares) > 0.3


def test_some_patients_have_their_arms_down(patients: list[phantom.Phantom]) -> None:
    """With arms a body is much broader than deep; of most patients it is not."""
    ratios = []
    for made in patients:
        rows, columns = np.nonzero(dense(made.hu[len(made.hu) // 2]))
        ratios.append(np.ptp(columns) / np.ptp(rows))
    assert 0.1 < np.mean(np.array(ratios) > 1.75) < 0.55 and min(ratios) < 1.65


def test_patients_lie_turned(patients: list[phantom.Phantom]) -> None:
    """The direction from the middle of the organs to the spine spreads by degrees."""
    angles = []
    for made in patients:
        plane = made.labels[len(made.labels) // 2]
        spine, middle = np.argwhere(plane == 8).mean(axis=0), np.argwhere(plane > 0).mean(axis=0)
        angles.append(np.rad2deg(np.arctan2(spine[1] - middle[1], spine[0] - middle[0])))
    assert 3 < np.std(angles) < 15
