"""A training on several sources is the same run on one, two and four processes, whenever they are killed."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from helpers.corpora import SEVERAL, overrides, write_corpus
from helpers.processes import said, train
from helpers.tiny_run import rows

from pretrain import stage
from pretrain.config import load
from pretrain.corpora import open_corpus
from pretrain.data.order import fingerprint

WORDS = ("data.sources.few.weight=0.2", "data.sources.body.window=[-200,300]", "save.every=2", "--stage", "adapt")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory):
    """arguments(name, *words) of a training on three sources below `arguments.root`; `whole` is the one alone."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "c.yaml").write_text(SEVERAL)
    sources = overrides(write_corpus(root))

    def of(name: str, *words: str) -> list[str]:
        return ["--config", str(root / "c.yaml"), f"name={name}", f"output={root}", *sources, *WORDS, *words]

    assert train(of("whole"), 1, root / "logs" / "whole") == [0], said(root / "logs" / "whole")
    of.root = root
    return of


def assert_same(one: Path, other: Path) -> None:
    """The same samples in every step, whole numbers alike and all others to 1e-5."""
    ours, theirs = rows(one / "adapt"), rows(other / "adapt")
    assert len(ours) == len(theirs) > 0
    for mine, yours in zip(ours, theirs):
        assert mine.keys() == yours.keys()
        for key, value in mine.items():
            same = value == yours[key]
            if isinstance(value, float):
                same = math.isclose(value, yours[key], rel_tol=1e-5, abs_tol=1e-5)
            assert same, (mine["step"], key, value, yours[key])


@dataclass(frozen=True)
class Dies:
    """A hook: every process is killed `delay` seconds after it has begun its step number `steps` since its start."""

    steps: int
    delay: float

    def __call__(self) -> None:
        real, before = stage.run_step, count()

        def dying(*arguments):
            if next(before) == self.steps:
                threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return real(*arguments)

        stage.run_step = dying


@pytest.mark.parametrize(
    ("size", "spread"), [(2, "ddp"), (2, "fsdp"), pytest.param(4, "ddp", marks=pytest.mark.stress)]
)
def test_ranks_share_a_mixed_batch(arguments, size: int, spread: str) -> None:
    """Metrics of each source too are those of one process."""
    name = f"{spread}{size}"
    logs = arguments.root / "logs" / name
    assert train(arguments(name, f"machine.parallel={spread}"), size, logs) == [0] * size, said(logs)
    assert_same(arguments.root / "whole", arguments.root / name)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.stress)])
def test_killed_and_resumed_on_other_numbers_of_processes_it_is_the_same_run(arguments, kills: int) -> None:
    """kill -9 at random moments, each start on one, two or four processes by turns."""
    name, root, draws, died = f"killed{kills}", arguments.root, random.Random(kills), 0
    for number in range(kills):
        hook = Dies(draws.randrange(2), draws.uniform(0, 0.2))
        statuses = train(arguments(name), (1, 2, 4)[number % 3], root / "logs" / name, hook)
        died += -signal.SIGKILL in statuses
    size = (1, 2, 4)[kills % 3]
    assert train(arguments(name), size, root / "logs" / name) == [0] * size, said(root / "logs" / name)
    assert died >= min(kills, 4)
    assert_same(root / "whole", root / name)


def test_the_metrics_name_the_samples_of_the_mixture(arguments) -> None:
    """A row's fingerprint is that of the corpus' own order, found without the run."""
    config = load(arguments.root / "whole" / "config.yaml")
    order = open_corpus(config).mixture(config.seed)
    for row in rows(arguments.root / "whole" / "adapt"):
        assert row["samples"] == f"{fingerprint(*order.batch(row['step'], 8)):012x}"
