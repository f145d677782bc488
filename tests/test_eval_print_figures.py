"""Figures for print: bands that resampling by hand gives, nothing cut off, vector files one column wide."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import probed

from eval import report
from eval.config import TaskConfig
from eval.data import groups
from eval.reporting import curves, forest, print_figures
from eval.reporting.forest import Row
from eval.statistics import bootstrap, curve_bands
from eval.statistics.predictions import Scored

NAMES = ("pleural effusion", "pneumothorax")


def scored(
    seed: int = 0, patients: int = 12, each: int = 6, gain: float = 1.0, names: tuple[str, ...] = NAMES
) -> Scored:
    """Return made-up multi-label scores that rise with the truth by `gain`; patients differ from each other."""
    truth, rng = np.random.default_rng(7), np.random.default_rng(seed)
    targets = (truth.random((patients * each, len(names))) < 0.4).astype(np.float64)
    subjects = np.repeat([f"{number:02d}" for number in range(patients)], each)
    shift = np.repeat(rng.normal(0, 0.7, patients), each)[:, None]
    raw = gain * (2 * targets - 1) + shift + rng.normal(0, 1, targets.shape)
    return Scored("multilabel", 1 / (1 + np.exp(-raw))[None], targets, subjects, np.arange(len(targets)), names)


def repeated(prediction: Scored, draws: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return scores and truth of the first label with every resample's patients written out as often as they count."""
    patients = np.unique(prediction.subjects)
    found = []
    for counts in bootstrap.resamples(len(patients), draws, seed):
        rows = np.concatenate(
            [np.flatnonzero(prediction.subjects == name) for name, count in zip(patients, counts) for _ in range(count)]
        )
        found.append((prediction.scores[0, rows, 0], prediction.targets[rows, 0] > 0))
    return found


def test_roc_bands_are_those_of_patients_written_out() -> None:
    """At each false positive rate the percentiles of the curves of resampled patients; ties are one step."""
    prediction = scored()
    prediction.scores[0] = prediction.scores[0].round(1)
    at, low, high = curve_bands.roc_band(prediction, 0, 200, 3)
    rates = []
    for scores, positive in repeated(prediction, 200, 3):
        alarms = [(scores[~positive] >= level).mean() for level in (2, *np.unique(scores)[::-1])]
        hits = [(scores[positive] >= level).mean() for level in (2, *np.unique(scores)[::-1])]
        rates.append([np.interp(each, alarms, hits) for each in at])
    wanted = np.percentile(rates, (2.5, 97.5), axis=0)
    assert np.allclose(low, wanted[0]) and np.allclose(high, wanted[1])
    alarms, hits = curve_bands.roc(prediction.scores[0, :, 0], prediction.targets[:, 0] > 0)
    middle = np.interp(at, alarms, hits)
    assert ((low <= middle + 1e-9) & (middle <= high + 1e-9)).mean() > 0.9 and (high - low).max() > 0.1


def test_calibration_intervals_are_those_of_patients_written_out() -> None:
    """The share of positives in each bin, over the resamples that have the bin."""
    prediction = scored(1)
    said, true, low, high = curve_bands.reliability(prediction, 0, 200, 3)
    shares: dict[int, list[float]] = {}
    for scores, positive in repeated(prediction, 200, 3):
        place = np.minimum((scores * 10).astype(int), 9)
        for each in np.unique(place):
            shares.setdefault(int(each), []).append(positive[place == each].mean())
    place = np.minimum((prediction.scores[0, :, 0] * 10).astype(int), 9)
    bins = np.unique(place)
    assert np.allclose(said, [prediction.scores[0, place == each, 0].mean() for each in bins])
    for number, each in enumerate(bins):
        if len(np.unique(prediction.subjects[place == each])) > 1:
            assert np.allclose((low[number], high[number]), np.percentile(shares[int(each)], (2.5, 97.5)))
            assert low[number] <= true[number] <= high[number]
        else:
            assert np.isnan(low[number])


def test_one_patient_has_no_band() -> None:
    """Nothing is claimed where there is nothing to resample, and a label of one class says so instead of a curve."""
    prediction = scored(patients=1, each=40)
    assert np.isnan(curve_bands.roc_band(prediction, 0, 50, 0)[1]).all()
    assert np.isnan(curve_bands.reliability(prediction, 0, 50, 0)[2]).all()
    prediction.targets[:, 0] = 0
    figure, axis = plt.subplots()
    curves.draw_roc(axis, {"before": prediction}, 0, 50, 0)
    assert [each.get_text() for each in axis.texts] == ["only one class"]
    plt.close(figure)


def test_runs_are_told_apart_in_grey_and_by_colour_blind_readers() -> None:
    """Every run has its own line and marker; colours of the first four differ for deuteranopes and protanopes, too."""
    lines = {str(look.line) for look in curves.LOOKS}
    assert len(lines) == len({look.marker for look in curves.LOOKS}) == len(curves.LOOKS)
    rgb = np.array([[int(look.colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for look in curves.LOOKS])
    machado = {  # Machado, Oliveira and Fernandes 2009, severity 1
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
    }
    for matrix in machado.values():
        seen = rgb[:4] @ np.array(matrix).T
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert gaps[np.triu_indices(4, 1)].min() > 0.15


LONG = "left internal mammary lymph node station with a very long name"


@pytest.mark.parametrize("width", [print_figures.WIDTH, 6.4])
def test_nothing_of_a_forest_plot_is_cut_off(width: float) -> None:
    """Names, long ones too, and numbers lie inside the figure and beside the points, none over another."""
    rows = [
        Row("probes", "knn", "auroc", 0.012, -0.003, 0.026, 20),
        Row("probes", "segmentation", "hd95", -33.615, -139.181, -26.970, 20),
        Row("segmentation: labels", LONG, "hd95", 12.5, 3.25, 110.0, 20),
        Row("segmentation: labels", "spleen", "hd95", 0.5, None, None, 1),
        Row("segmentation: subgroups", "manufacturer SIEMENS HEALTHINEERS", "hd95", -2.5, -4.0, 1.0, 12),
    ]
    figure = forest.draw(rows, width, 6.5)
    figure.canvas.draw()
    inside = figure.bbox
    for axis in figure.axes:
        texts = [*axis.texts, axis.xaxis.label, *axis.get_xticklabels()]
        boxes = [each.get_window_extent() for each in texts if each.get_text()]
        assert all(
            inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1 for box in boxes
        )
        assert all(each.get_fontsize() >= 5 for each in texts)
        names = [each.get_window_extent() for each in axis.texts]
        assert not any(one.overlaps(other) for n, one in enumerate(names) for other in names[:n])
    text = [each.get_text() for axis in figure.axes for each in axis.texts]
    assert "+0.012 (−0.003 to +0.026)" in text and "−33.6 (−139.2 to −27.0)" in text
    markers = {line.get_marker() for axis in figure.axes for line in axis.lines} - {"None"}
    assert markers == {"o", "s", "D"}  # better (lower HD95), worse, neither
    plt.close(figure)


def test_files_are_vectors_of_one_column() -> None:
    """85 mm wide; text of the PDF is text in an embedded font; twice the same bytes; no date."""
    two = {"before": scored(0), "after": scored(1, gain=2.0)}
    found = dict(print_figures.classifiers(two, 50, 0))
    found["forest"] = print_figures.forest([Row("probes", "knn", "auroc", 0.1, 0.05, 0.2, 12)])
    assert list(found) == ["roc", "calibration", "forest"]
    for formats in found.values():
        svg = formats["svg"].decode()
        assert abs(float(re.findall(r'width="([\d.]+)pt"', svg)[0]) / 72 * 25.4 - 85) < 0.5
        assert "<image" not in svg and "<dc:date>" not in svg
        assert (
            b"/FontFile2" in formats["pdf"]
            and b"/Type3" not in formats["pdf"]
            and b"CreationDate" not in formats["pdf"]
        )
    again = dict(print_figures.classifiers(two, 50, 0))
    assert again == {name: found[name] for name in again}
    many = scored(names=tuple(f"label {number}" for number in range(11)))
    assert [name for name, _ in print_figures.classifiers({"before": many}, 20, 0)] == [
        "roc-1",
        "roc-2",
        "calibration-1",
        "calibration-2",
    ]


def test_a_report_links_its_figures_for_print(tmp_path: Path) -> None:
    """Two tasks: a forest plot of both on top; of each, probes, labels and subgroups; all files linked, none named
    twice."""
    folders = []
    for number, name in enumerate(("chest/X-ray", "chest X-ray")):
        task = TaskConfig(
            name=name, kind="multilabel", draws=100, subgroups=["sex"], subgroup_patients=4, main="knn/auroc"
        )
        for run, gain in (("before", 0.3), ("after", 2.0)):
            folder = probed.write(tmp_path / f"{number}-{run}", task, {"knn": scored(3, gain=gain)})
            groups.write(folder, {"sex": {f"{each:02d}": "F" if each % 2 else "M" for each in range(12)}})
            folders.append(folder)
    report.main(["--runs", *map(str, folders), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == len(set(links)) == 2 * (1 + 2 * 3)
    assert {tmp_path / each for each in links} == set((tmp_path / "report_files").iterdir())
    assert "The main figure of every task" in page
    pictured = [each for each in links if each.endswith("forest.pdf")]
    assert len(pictured) == 3
