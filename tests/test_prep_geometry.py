"""Grids: turned, overlapped, resampled; what is on them stays where it is in the patient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import GeometryConfig, GridConfig
from data_prep.volumes import geometry, slicing
from data_prep.volumes.volume import RejectedSeries

TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((-1, 1), repeat=3)))


@pytest.mark.parametrize(("axes", "signs"), TURNS)
def test_all_48_orientations_come_out_the_same(axes: tuple, signs: tuple) -> None:
    """However the axes of a grid are ordered and flipped, voxels keep their place and the axes run as they should."""
    shape = np.array([4, 5, 6])
    voxels = np.arange(120).reshape(shape)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (target, sign) in enumerate(zip(axes, signs)):
        affine[target, axis] = sign * (axis + 1.0)
    affine[:3, 3] = 3, -7, 11
    turned, transform = geometry.canonical(voxels, affine)
    assert transform[0, 0] < 0 and transform[1, 1] < 0 and transform[2, 2] > 0
    assert np.count_nonzero(transform[:3, :3]) == 3
    for index in [(0, 0, 0), (3, 4, 5), (1, 2, 3)]:
        at = affine @ [*index, 1]
        x, y, z = np.rint(np.linalg.solve(transform, at)[:3]).astype(int)
        assert turned[z, y, x] == voxels[index]


def test_axial_grids_are_never_interpolated() -> None:
    """Up to max_oblique_degrees values are the stored ones, in another order at most."""
    angle = np.radians(15)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    voxels = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    turned, _, notes = geometry.to_axial(voxels, affine, GeometryConfig(), -1024)
    assert sorted(turned.ravel()) == sorted(voxels.ravel()) and not notes


def test_an_affine_without_three_directions_is_refused() -> None:
    """Two axes that run the same way: nothing can be told."""
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 1] = affine[:3, 0] + [0, 0.01, 0]
    with pytest.raises(RejectedSeries, match="run along the same axis of the patient"):
        geometry.nearest_axes(affine)


def test_placing_keeps_places() -> None:
    """A linear signal on another grid, finer and shifted, is the linear signal there."""
    source = np.diag([2.0, 2, 3, 1])
    target = np.array([[0.7, 0, 0, 3], [0, 0.9, 0, 4], [0, 0, 1.1, 5], [0, 0, 0, 1.0]])
    values = np.einsum(
        "i,ijkl->jkl", [2.0, 3.0, 4.0], np.indices((20, 20, 15)) * np.array([2, 2, 3.0]).reshape(3, 1, 1, 1)
    )
    placed = geometry.place(values, source, target, (20, 18, 20), order=1)
    at = np.indices((20, 18, 20)) * np.array([0.7, 0.9, 1.1]).reshape(3, 1, 1, 1) + np.array([3, 4, 5]).reshape(
        3, 1, 1, 1
    )
    assert np.allclose(placed, np.einsum("i,ijkl->jkl", [2.0, 3.0, 4.0], at))


def test_placing_on_a_coarser_grid_does_not_alias() -> None:
    """A pattern finer than the target's voxels averages out instead of becoming another pattern."""
    stripes = np.tile([0.0, 100.0], 40)[:, None, None] * np.ones((80, 8, 8))
    placed = geometry.place(stripes, np.eye(4), np.diag([3.0, 1, 1, 1]), (26, 8, 8), order=1)
    assert np.ptp(placed[2:-2]) < 25 and placed[2:-2].mean() == pytest.approx(50, abs=3)


def test_overlap_is_a_share_of_the_reference() -> None:
    """Whole, half, none."""
    grid, moved = np.eye(4), np.eye(4)
    moved[0, 3] = 10
    far = np.eye(4)
    far[2, 3] = 100
    assert geometry.overlap((20, 20, 20), grid, grid, (20, 20, 20)) == 1
    assert geometry.overlap((20, 20, 20), grid, moved, (20, 20, 20)) == pytest.approx(0.5, abs=0.05)
    assert geometry.overlap((20, 20, 20), grid, far, (20, 20, 20)) == 0


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(8, 90),
    columns=st.integers(8, 90),
    mm=st.floats(0.4, 3.0),
    wanted=st.floats(0.5, 4.0),
    size=st.sampled_from([None, 16, 40, 96]),
)
def test_a_fitted_slice_keeps_extent_and_constants(rows: int, columns: int, mm: float, wanted: float, size) -> None:
    """Spacing times pixels stays the extent; a constant stays constant; labels stay labels; shapes are as asked."""
    fit = slicing.Resampler((rows, columns), (mm, mm), GridConfig(in_plane_mm=wanted, size=size))
    plane = fit.image(np.full((rows, columns), 321, np.int16), outside=-1024)
    labels = fit.labels(np.full((rows, columns), 7, np.uint8))
    assert plane.shape == labels.shape and set(np.unique(plane)) <= {321, -1024} and set(np.unique(labels)) <= {0, 7}
    if size:
        assert plane.shape == (size, size)
        assert np.array_equal(plane == 321, labels == 7)
    else:
        for n, before, after in zip(plane.shape, (rows, columns), fit.spacing):
            assert n * after == pytest.approx(before * mm)
            assert n == max(round(before * mm / wanted), 1)


def test_a_fitted_slice_is_antialiased_and_stays_in_place() -> None:
    """Stripes of one pixel become their mean; a disk's centre stays at the same millimetre, also after cutting."""
    stripes = np.tile(np.array([0, 1000], np.int16), (64, 32))
    coarse = slicing.Resampler((64, 64), (1.0, 1.0), GridConfig(in_plane_mm=4.0)).image(stripes, 0)
    assert np.abs(coarse.astype(int) - 500).max() < 40
    rows, columns = np.indices((100, 80))
    disk = np.where((rows - 30) ** 2 + (columns - 50) ** 2 < 100, 1000, 0).astype(np.int16)
    fit = slicing.Resampler((100, 80), (1.0, 1.0), GridConfig(in_plane_mm=2.5, size=32))
    found = np.argwhere(fit.image(disk, 0) > 500).mean(axis=0)
    # the centres of both grids lie on each other
    assert (found - 15.5) * 2.5 == pytest.approx(np.array([30, 50]) - [49.5, 39.5], abs=0.6)


def test_no_value_is_invented_at_edges() -> None:
    """Cubic interpolation overshoots; what is stored stays within what was there."""
    edge = np.full((40, 40), -1024, np.int16)
    edge[:, 20:] = 32767
    out = slicing.Resampler((40, 40), (1.0, 1.0), GridConfig(in_plane_mm=0.6)).image(edge, -1024)
    assert out.min() == -1024 and out.max() == 32767


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(40, 60), (300, 280)]))
def test_the_body_box_encloses_the_body(seed: int, shape: tuple) -> None:
    """Exact on small slices, to a pixel on large ones; dust does not widen it, 4 pixels away on large slices."""
    slack, gap = (0, 1) if min(shape) < 256 else (1, 4)
    rng = np.random.default_rng(seed)
    body = np.zeros(shape, bool)
    r0, c0 = (int(rng.integers(2, n // 2)) for n in shape)
    r1, c1 = (int(rng.integers(start + n // 4, n - gap)) for start, n in zip((r0, c0), shape))
    body[r0:r1, c0:c1] = True
    body[0, 0] = body[-1, -1] = True  # dust
    row0, row1, column0, column1 = slicing.body_box(body)
    assert (
        0 <= r0 - row0 <= slack
        and 0 <= row1 - r1 <= slack
        and 0 <= c0 - column0 <= slack
        and 0 <= column1 - c1 <= slack
    )
