"""What several tests share: where the reference data lie, and a tiny data set written by the schema alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.datasets import write_dataset
from helpers.golden import SHARED, GoldenFiles
from helpers.radiographs import chests

from data_prep import generate, identity, shard_images, shard_mri

STRESS_SECONDS = 1800
LONG = (
    "test_slurm_jobs.py",  # mostly waits for its cluster
    "test_slurm_scripts.py",
    "test_pretrain_parallel.py",
    "test_pretrain_train.py",
    "test_pretrain_three_stages.py",
    "test_pretrain_step.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stress tests may take longer than setup.cfg's limit; the longest files come first, so that none is left last.

    Where pytest-timeout is not installed (a bare GPU machine) there are no limits.
    """
    limited = config.pluginmanager.hasplugin("timeout")
    for item in items:
        if limited and item.get_closest_marker("stress") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(STRESS_SECONDS))
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """`pytest -n 2` gives each file to one process, for its tests share fixtures; those of SLURM share one cluster."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if "test_slurm_" in nodeid else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test hashes with the same salt."""
    monkeypatch.setenv(identity.VARIABLE, "tests")


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small synthetic patients and the odd files; to be read only."""
    folder = tmp_path_factory.mktemp("patients")
    generate.generate(folder, generate.GenerateConfig(patients=6, slices=8, size=40))
    return folder


@pytest.fixture(scope="session")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight synthetic MRI patients in BraTS's names, some sequences missing, with labels.csv; to be read only."""
    folder = tmp_path_factory.mktemp("brains")
    words = dict(modality="mr", patients=8, slices=5, size=40, missing=0.2)
    generate.generate(folder, generate.GenerateConfig(**words))
    return folder


@pytest.fixture(scope="session")
def brain_shards(brains: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shards, labels in them, five or six of them in training; to be read only."""
    folder = tmp_path_factory.mktemp("brain_shards")
    words = ["--input", str(brains), "--labels", str(brains / "labels.csv"), "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        assert shard_mri.main([*words, "split.train=6"]) == 0
    return folder


@pytest.fixture(scope="session")
def radiograph_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small radiographs of two classes, half DICOM and half PNG, as the sequence xray; to be read only."""
    folder = tmp_path_factory.mktemp("radiographs")
    words = ["--input", str(chests(folder / "in")), "--output", str(folder / "shards")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        assert shard_images.main([*words, "class_from=folder", "sequence=xray"]) == 0
    return folder / "shards"


@pytest.fixture(scope="session")
def golden_dir() -> GoldenFiles:
    """The references' own numbers: `golden_dir / NAME`; skips where a file is missing."""
    return GoldenFiles()


@pytest.fixture
def data_dir() -> Path:
    """Folder of real images; skips where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data, which is not beside this checkout")
    return SHARED / "data"


@pytest.fixture
def tiny_dataset(tmp_path: Path):
    """Write a tiny data set below tmp_path: tiny_dataset(patients={"train": 4, "val": 2, "test": 2}, slices=6)."""

    def make(patients: dict[str, int] | None = None, **options) -> Path:
        return write_dataset(tmp_path / "data", patients or {"train": 4, "val": 2, "test": 2}, **options)

    return make
