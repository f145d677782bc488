"""The interactive patch map: true to the features, one file that needs no network, used with mouse and keys."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.browser import opened
from helpers.datasets import body_slice, write_dataset
from helpers.encoders import Pixels, random_transformer
from PIL import Image

from data_prep import schema
from eval.config import PatchMapConfig, StrideConfig, TaskConfig
from eval.data import features, sources
from eval.data.examples import Examples, Picture
from eval.data.files import FileError
from eval.reporting import patch_map, patch_map_page, quantised

Encoder = Any


def mr_slice(rng: np.random.Generator, subject: int, order: int, size: int = 64) -> schema.Slice:
    """The body in two sequences, of which every third patient lacks the second."""
    one = body_slice(rng, subject, order, size)
    shown = ((one.pixels[0].astype(np.float64) + 1000) * 20).astype(np.uint16)
    planes = np.stack([shown, shown.max() - shown])
    count = 1 if subject % 3 == 0 else 2
    return replace(one, pixels=planes[:count], sequences=("flair", "t1")[:count])


def task_of(root: Path, **changes: Any) -> TaskConfig:
    """Return a task on a data set, six patients of five slices in the map."""
    shown = PatchMapConfig(**{"patients": 4, "slices": 5, **changes})
    return TaskConfig(data=str(root), size=64, stride=StrideConfig(test=1), patch_map=shown, batch_size=8)


@pytest.fixture
def shown(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """A function that writes the maps of some encoders on one data set and returns page, task, examples and rows."""

    def made(encoders: dict[str, Encoder], make: Any = body_slice, **changes: Any) -> SimpleNamespace:
        root = write_dataset(tmp_path / "data", {"train": 1, "val": 1, "test": 5}, slices=6, make=make)
        task = task_of(root, **changes)
        everyone = sources.load(task, tmp_path / "cache")
        test = everyone.take(everyone.splits == "test")
        folders = []
        for name, encoder in encoders.items():
            found = patch_map.make(encoder, test, task)
            assert found is not None
            (tmp_path / name).mkdir()
            patch_map.save(tmp_path / name / "patch_map.npz", found)
            folders.append(tmp_path / name)
        text = patch_map_page.of(folders)
        assert text is not None
        path = tmp_path / "map.html"
        path.write_text(text)
        rows = patch_map.choose(test, task.patch_map.patients, task.patch_map.slices)
        return SimpleNamespace(path=path, text=text, task=task, test=test, rows=rows, folders=folders)

    return made


def real(encoder: Encoder, test: Examples, rows: np.ndarray, sequence: str = "") -> np.ndarray:
    """Return (N, P, D) unit features as the encoder gives them, of all sequences or of one alone."""
    pictures = [test.read(row) for row in rows]
    if sequence:
        at = [each.sequences.index(sequence) for each in pictures]
        pictures = [
            replace(each, pixels=each.pixels[place : place + 1], sequences=(sequence,))
            for each, place in zip(pictures, at)
        ]
    found = np.concatenate([features.encode(encoder, [each], 64, (-1,))[0][1].numpy() for each in pictures])
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


@pytest.mark.parametrize("width", [64, 384])
def test_few_components_keep_the_cosines(width: int) -> None:
    """Features with a common direction, of falling spectrum: no cosine of any pair is wrong by 0.02; fewer bytes are
    used where fewer do, and what is 0 stays 0."""
    rng = np.random.default_rng(width)
    spread = np.exp(-np.arange(width) / 12)
    found = (rng.normal(size=(3000, width)) * spread + 2 * rng.normal(size=width) * spread).astype(np.float16)
    found[:5] = 0
    packed = quantised.quantise(found, 0.02)
    read, truth = quantised.decoded(packed.codes, packed.middle, packed.step), quantised.unit(found)
    assert packed.error < 0.02 and np.abs(read @ read.T - truth @ truth.T).max() < 0.02
    assert packed.codes.shape[1] < width and packed.codes.dtype == np.int8
    assert not read[:5].any() and np.allclose(np.linalg.norm(read[5:], axis=1), 1, atol=1e-5)
    rough = quantised.quantise(found, 0.1)
    assert rough.codes.shape[1] < packed.codes.shape[1] and rough.error < 0.1
    hopeless = quantised.quantise(found, 1e-9)
    assert hopeless.codes.shape[1] == width and hopeless.error > 1e-9


def test_slices_are_spread_over_patients_and_series(tmp_path: Path) -> None:
    """Evenly chosen patients, evenly chosen slices of the longest series of each, in order; no more than are there."""
    root = write_dataset(tmp_path / "data", {"train": 1, "val": 1, "test": 6}, slices=9)
    everyone = sources.load(task_of(root), tmp_path / "cache")
    test = everyone.take(everyone.splits == "test")
    rows = patch_map.choose(test, 3, 3)
    assert len(np.unique(test.subjects[rows])) == 3 and len(rows) == 9
    assert all(np.diff(test.orders[rows].reshape(3, 3)).min(axis=1) > 0)
    whole = patch_map.choose(test, 100, 100)
    assert sorted(whole.tolist()) == list(range(len(test)))
    studies = np.where(test.orders < 2, "short", test.studies)
    assert test.orders[patch_map.choose(replace(test, studies=studies), 6, 100)].min() >= 2


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Fewer slices of each patient, then fewer patients, where the features would exceed patch_map.memory_gb."""
    root = write_dataset(tmp_path / "data", {"train": 1, "val": 1, "test": 6}, slices=9)
    encoder = Pixels()
    everyone = sources.load(task_of(root), tmp_path / "cache")
    test = everyone.take(everyone.splits == "test")
    each = 64 * encoder.embed_dim * 2  # bytes of a slice
    for slices, patients in ((12, 4), (4, 4), (2, 2)):
        task = task_of(root, memory_gb=slices * each / 1e9)
        rows = patch_map.kept(encoder, test, task)
        assert len(rows) <= slices and len(np.unique(test.subjects[rows])) == patients


def numbers(text: str) -> list[float]:
    """Return the similarities in the captions of tiles."""
    return [float(each) for each in re.findall(r"(-?\d\.\d{3})", text)]


def test_a_reader_clicks_drags_and_presses_keys(shown: Callable[..., SimpleNamespace]) -> None:
    """In a real browser: what is marked, read and listed equals the cosines of the encoders' own features."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    encoders = {"before": random_transformer(0), "after": random_transformer(1, patch_size=16)}
    made = shown(encoders)
    truth = {name: real(each, made.test, made.rows) for name, each in encoders.items()}
    grids = {"before": 8, "after": 4}
    patients = np.unique(made.test.subjects[made.rows], return_inverse=True)[1]

    with opened(made.path) as browser:
        panels = browser.find_elements(By.CSS_SELECTOR, ".panel")
        canvases = [each.find_element(By.CSS_SELECTOR, "canvas.main") for each in panels]

        def at(canvas: Any, x: float, y: float) -> ActionChains:
            """Go to a place given as shares of the canvas."""
            side = canvas.size["width"]
            return ActionChains(browser).move_to_element_with_offset(
                canvas, round((x - 0.5) * side), round((y - 0.5) * side)
            )

        def coloured(canvas: Any) -> bool:
            """Say whether anything above the marked patch is not grey."""
            address = browser.execute_script("return arguments[0].toDataURL()", canvas)
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))
            return bool(np.ptp(picture[: len(picture) // 2].astype(int), axis=2).max() > 2)

        def check(row: int, x: float, y: float, read: tuple[float, float]) -> None:
            """Both panels: the value under the pointer, the neighbours and the other patients."""
            for panel, (name, values) in zip(panels, truth.items()):
                grid = grids[name]
                query = values[row, int(y * grid) * grid + int(x * grid)]
                cosines = values @ query
                output = panel.find_element(By.CSS_SELECTOR, "output").text
                wanted = cosines[row, int(read[1] * grid) * grid + int(read[0] * grid)]
                assert f"row {int(y * grid) + 1}, column {int(x * grid) + 1} of {grid}" in output
                assert abs(numbers(output)[-1] - wanted) < 0.02, output
                mine = np.flatnonzero(patients == patients[row])
                place = int(np.flatnonzero(mine == row)[0])
                beside = [mine[place + by] for by in (-2, -1, 1, 2) if 0 <= place + by < len(mine)]
                tiles = panel.find_elements(By.CSS_SELECTOR, ".neighbours button")
                assert len(tiles) == len(beside)
                for tile, each in zip(tiles, beside):
                    assert abs(numbers(tile.text)[-1] - cosines[each].max()) < 0.02
                best = {
                    patient + 1: cosines[patients == patient].max()
                    for patient in np.unique(patients)
                    if patient != patients[row]
                }
                listed = panel.find_elements(By.CSS_SELECTOR, ".matches button")
                assert len(listed) == len(best)
                told = {int(re.findall(r"patient (\d+)", tile.text)[0]): numbers(tile.text)[-1] for tile in listed}
                assert list(told.values()) == sorted(told.values(), reverse=True)
                assert told.keys() == best.keys() and all(abs(told[key] - best[key]) < 0.02 for key in told)

        start = int(np.flatnonzero(patients == 0)[2])
        blank = browser.execute_script("return arguments[0].toDataURL()", canvases[1])
        at(canvases[0], 0.30, 0.45).click().perform()  # marks the same place in both
        at(canvases[1], 0.70, 0.55).perform()
        check(start, 0.30, 0.45, (0.70, 0.55))
        assert browser.execute_script("return arguments[0].toDataURL()", canvases[1]) != blank

        slider = browser.find_element(By.ID, "slice")
        ActionChains(browser).click_and_hold(slider).move_by_offset(slider.size["width"], 0).release().perform()
        last = int(np.flatnonzero(patients == 0)[-1])
        at(canvases[0], 0.60, 0.40).perform()
        check(last, 0.30, 0.45, (0.60, 0.40))
        assert "Slice 5 of 5" in browser.find_element(By.ID, "slice-text").text

        canvases[0].send_keys(Keys.PAGE_UP, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
        ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT * 2).key_up(Keys.SHIFT).perform()
        x, y = 3.5 / 8, 5.5 / 8  # from column 3 and row 4 of 8, one right and two down
        check(last - 1, x, y, (1.5 / 8, y))
        assert browser.switch_to.active_element == canvases[0]
        canvases[0].send_keys(Keys.HOME)
        assert "Slice 1 of 5" in browser.find_element(By.ID, "slice-text").text

        assert coloured(canvases[0])
        canvases[0].send_keys("h")  # hides the colours
        assert not coloured(canvases[0])
        canvases[0].send_keys("h")
        browser.find_element(By.ID, "stretch").click()
        first = int(np.flatnonzero(patients == 0)[0])
        for panel, (name, values) in zip(panels, truth.items()):
            cosines = values[first] @ values[first, int(y * grids[name]) * grids[name] + int(x * grids[name])]
            low, high = (float(panel.find_element(By.CSS_SELECTOR, each).text) for each in (".low", ".high"))
            assert abs(low - cosines.min()) < 0.03 and abs(high - 1) < 0.01

        tile = panels[1].find_element(By.CSS_SELECTOR, ".matches button")  # go to the best match of another patient
        patient, slice_ = (int(each) for each in re.findall(r"patient (\d+), slice (\d+)", tile.text)[0])
        tile.click()
        assert browser.find_element(By.ID, "said").text == f"Patient {patient}, slice {slice_} of 5."
        assert browser.find_element(By.ID, "patient").get_attribute("value") == str(patient - 1)

        focused = []  # everything is reached by Tab, and the page says what it is
        browser.find_element(By.TAG_NAME, "h1").click()
        for _ in range(12):
            ActionChains(browser).send_keys(Keys.TAB).perform()
            element = browser.switch_to.active_element
            focused.append(element.get_attribute("id") or element.get_attribute("class"))
        assert {"patient", "slice", "heat", "stretch", "encoder", "main"} <= set(focused)
        assert canvases[1].get_attribute("aria-label").startswith("after: slice")
        assert browser.find_element(By.ID, "channel-label").is_displayed() is False


def test_sequences_are_chosen_together_and_alone(shown: Callable[..., SimpleNamespace]) -> None:
    """MR of two sequences, one missing in some patients: features of both together or of one, and "absent" is said."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    encoder = random_transformer(0, sequences=["flair", "t1"])
    made = shown({"before": encoder}, make=mr_slice)
    found = patch_map.read(made.folders[0] / "patch_map.npz")
    assert found.views == ("", "flair", "t1") and found.there[:2].all() and 0 < found.there[2].sum() < len(made.rows)
    there = found.there[2]
    for view, rows in (("", made.rows), ("flair", made.rows), ("t1", made.rows[there])):
        values = real(encoder, made.test, rows, view).reshape(-1, encoder.embed_dim)
        read = found.vectors()[found.views.index(view)]
        read = (read[there] if view == "t1" else read).reshape(len(values), -1)
        assert np.abs(read[:64] @ read.T - values[:64] @ values.T).max() < 0.02
    with opened(made.path) as browser:
        Select(browser.find_element(By.ID, "view")).select_by_visible_text("t1")
        Select(browser.find_element(By.ID, "channel")).select_by_visible_text("t1")
        for patient in range(4):
            Select(browser.find_element(By.ID, "patient")).select_by_index(patient)
            said = browser.find_element(By.CSS_SELECTOR, ".panel output").text
            lacking = not there[found.patients == patient].any()
            assert ("No features" in said) is lacking
            listed = browser.find_elements(By.CSS_SELECTOR, ".panel .matches button")
            assert bool(listed) is not lacking


def test_colours_and_images_under_another_name(tmp_path: Path) -> None:
    """Colour pictures are shown by their luma, and an encoder of several sequences takes them as the task says."""
    root = write_dataset(tmp_path / "data", {"train": 1, "val": 1, "test": 2})
    task = replace(task_of(root), sequence="xray")
    everyone = sources.load(task_of(root), tmp_path / "cache")
    test = everyone.take(everyone.splits == "test")
    planes = np.zeros((3, 64, 64), np.uint8)
    planes[1, :, 32:] = 200  # green, of which red has nothing
    coloured = Picture(planes, ("image",), "unit8", (0, 64, 0, 64), channels=3)
    found = patch_map.make(
        random_transformer(0, sequences=["t1", "xray"]), replace(test, reader=lambda _: coloured), task
    )
    assert found is not None and found.views == ("",) and found.there.all() and found.channels == ("image",)
    assert found.images.shape[0] == 1 and abs(int(found.images[0, 0, 32, 60]) - 0.587 * 200) < 2
    assert not found.images[0, 0, 32, 4]


def test_dark_and_narrow(shown: Callable[..., SimpleNamespace]) -> None:
    """The page follows the reader's colours, and fits a telephone without scrolling sideways."""
    made = shown({"before": Pixels(), "after": random_transformer(1)})
    colour = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    with opened(made.path, 500, 900, dark=True) as browser:
        assert max(browser.execute_script(colour)) < 60
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    with opened(made.path) as browser:
        assert min(browser.execute_script(colour)) > 200


def test_the_page_names_nobody_and_loads_nothing(shown: Callable[..., SimpleNamespace]) -> None:
    """One file: no address but data, a policy that forbids others, no hash, key, path or salt of a patient."""
    made = shown({"before": Pixels()})
    assert "default-src 'none'" in made.text and "http:" not in made.text and "https:" not in made.text
    assert not re.search(r'(src|href)="(?!data:)', made.text)
    for column in (made.test.subjects, made.test.studies, made.test.keys):
        assert not any(str(each) in made.text for each in column)
    assert str(made.path.parent) not in made.text
    assert "largest error of those that were checked is 0.0" in made.text


def test_names_cannot_leave_the_data(tmp_path: Path) -> None:
    """A label of a data set that looks like the end of a script stays text."""
    label = "</script><script>alert(1)</script>"
    root = write_dataset(tmp_path / "data", {"train": 1, "val": 1, "test": 2}, labels={"1": label, "2": "dark"})
    everyone = sources.load(task_of(root), tmp_path / "cache")
    found = patch_map.make(Pixels(), everyone.take(everyone.splits == "test"), task_of(root))
    assert found is not None and label in found.names
    (tmp_path / "before").mkdir()
    patch_map.save(tmp_path / "before" / "patch_map.npz", found)
    text = patch_map_page.of([tmp_path / "before"])
    assert text is not None and label not in text and text.count("<script") == 2


def large(patients: int, slices: int, grid: int, width: int, seed: int) -> patch_map.PatchMap:
    """Return a map of made-up features; the same slices for every seed."""
    rng, count = np.random.default_rng(seed), patients * slices
    return patch_map.PatchMap(
        task="large",
        views=("",),
        codes=rng.integers(-127, 128, (1, count, grid * grid, width), np.int8),
        middle=np.zeros(width, np.float32),
        step=np.ones(width, np.float32),
        error=0.01,
        there=np.ones((1, count), bool),
        channels=("ct",),
        images=np.random.default_rng(0).integers(0, 256, (1, count, 64, 64), np.uint8),
        labels=np.zeros((count, grid * grid), np.uint8),
        names=(),
        patients=np.repeat(np.arange(patients), slices),
        positions=np.tile(np.arange(slices) * 5.0, patients),
        digests=np.arange(count, dtype=np.uint64),
    )


@pytest.mark.parametrize(("patients", "slices"), [(12, 12), (200, 1), (12, 2)])
def test_no_page_exceeds_15_megabytes(tmp_path: Path, patients: int, slices: int) -> None:
    """Slices are left out evenly, of every patient alike as long as one is left, and the page says so."""
    for seed, name in enumerate(("before", "after")):
        (tmp_path / name).mkdir()
        patch_map.save(tmp_path / name / "patch_map.npz", large(patients, slices, 32, 96, seed))
    text = patch_map_page.of([tmp_path / "before", tmp_path / "after"])
    assert text is not None and len(text.encode()) < 15_000_000
    whole = patients * slices * 2 * 32 * 32 * 96 * 4 / 3
    left_out = re.search(r"(\d+) of (\d+) slices are shown", text)
    assert (left_out is not None) is (whole > 15_000_000)
    if left_out and slices > 1:
        shown, there = map(int, left_out.groups())
        assert there == patients * slices and shown % patients == 0 and f"{shown} slices of {patients} test" in text
        assert len(text) + patients * 2 * 32 * 32 * 96 * 4 / 3 > 14_500_000  # one more of each does not fit


def test_a_damaged_map_is_one_line(tmp_path: Path) -> None:
    """A file that is cut, lacks an array or holds arrays of other shapes: its name and what to do."""
    patch_map.save(tmp_path / "patch_map.npz", large(2, 2, 4, 16, 0))
    whole = (tmp_path / "patch_map.npz").read_bytes()
    with np.load(tmp_path / "patch_map.npz") as stored:
        arrays = dict(stored)
    changes: list[dict[str, Any]] = [
        {"codes": arrays["codes"][:, 1:]},
        {"step": arrays["step"][1:]},
        {"labels": arrays["labels"][1:]},
        {"images": arrays["images"][:, 1:]},
        {"views": None},
    ]
    for change in [*changes, b"", whole[:-500], whole[: len(whole) // 2]]:
        if isinstance(change, bytes):
            (tmp_path / "patch_map.npz").write_bytes(change)
        else:
            changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
            np.savez(tmp_path / "patch_map.npz", **changed)
        with pytest.raises(FileError, match=r"patch_map.npz: damaged or cut \(\w+\); probe again"):
            patch_map_page.of([tmp_path])


def test_an_encoder_on_other_slices_is_named_and_left_out(tmp_path: Path) -> None:
    """Two maps of different slices are not laid beside each other."""
    one, other = large(3, 3, 4, 16, 0), large(3, 3, 4, 16, 1)
    for name, each in (("before", one), ("after", replace(other, digests=other.digests + np.uint64(1)))):
        (tmp_path / name).mkdir()
        patch_map.save(tmp_path / name / "patch_map.npz", each)
    text = patch_map_page.of([tmp_path / "before", tmp_path / "after"])
    assert text is not None and "after is not shown: its slices are others" in text
    assert text.count('"name":"before"') == 1 and '"name":"after"' not in text
    assert patch_map_page.of([tmp_path]) is None
