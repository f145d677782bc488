"""Commands of ours run quietly, and probes of one model trained with several seeds as one prediction."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.identity import VARIABLE
from eval.reporting import results
from eval.statistics import bootstrap
from eval.statistics.predictions import Scored
from meddap.settings import SettingsError


def environment(salt: str) -> dict[str, str]:
    """Return the environment of a command: one thread, the user's salt or else `salt`."""
    return {**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: os.environ.get(VARIABLE, salt)}


def run(*words: object, salt: str) -> None:
    """Run a command of ours, quietly. Raises SettingsError with its last line where it fails."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment(salt))
    if done.returncode:
        said = (done.stderr.strip() or "no word").splitlines()[-1]
        raise SettingsError(f"{' '.join(map(str, words[:2]))}: exit status {done.returncode}: {said}")


def stacked(folders: Sequence[Path], name: str) -> Scored:
    """Return the predictions `name` of several probes of the same patients, those of each seed as a fit."""
    every = [results.read_predictions(folder)[1][name] for folder in folders]
    scored = [each for each in every if isinstance(each, Scored)]
    return replace(scored[0], scores=np.concatenate([each.scores for each in scored]))


def shown(figures: Mapping[str, bootstrap.Figure], sign: str = "") -> str:
    """Return the average over classes with its interval; a difference that is surely above 0 in bold."""
    figure = figures.get("macro") or figures["all"]
    value, interval = bootstrap.shown(figure.row(), sign)
    text = f"{value} ({interval})"
    return f"**{text}**" if sign and figure.low > 0 else text
