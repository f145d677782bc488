"""Folders as eval.probe writes them, of predictions that a test makes up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eval.config import TaskConfig
from eval.contract import Outcome
from eval.data import files
from eval.reporting import results
from eval.statistics.predictions import Prediction


def write(folder: Path, task: TaskConfig, predictions: Mapping[str, Prediction], **more: object) -> Path:
    """Write results.jsonl and predictions.npz; `more` is in every row. Returns the folder."""
    pooled = {name: [Outcome(each)] for name, each in predictions.items()}
    choices = {name: {"chosen_on_val": {}, "refitted": False} for name in pooled}
    shared = {"leaks": {"checked": [], "unchecked": ""}, "encoder": folder.name, "digest": "0", "dataset": "0"}
    folder.mkdir(parents=True)
    rows = [row | shared | more for row in results.rows(pooled, choices, task)]
    results.save_predictions(folder / "predictions.npz", pooled, task)
    files.write_rows(folder / "results.jsonl", rows)
    return folder
