"""The checkpoint of a run that validation patients chose: RUN/chosen.json, which `--checkpoint RUN:chosen` names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meddap.disk import write_atomic
from meddap.records import read_json
from pretrain.runtime import checkpoint
from pretrain.runtime.checkpoint import Checkpoint, CheckpointError

NAME = "chosen.json"
SUFFIX = ":chosen"
_AGAIN = "choose again: meddap choose --run RUN --task FILE"
_FORM = {"checkpoint": str, "sha256": str, "rule": str, "beats_start": bool, "tasks": [dict]}


def run_of(path: str | Path) -> Path | None:
    """Return RUN of `RUN:chosen`; None for any other path."""
    text = str(path)
    return Path(text.removesuffix(SUFFIX)) if text.endswith(SUFFIX) and text != SUFFIX else None


def write(run: Path, place: Checkpoint, record: dict[str, Any]) -> None:
    """Write the record of a choice, whole or not at all: `place` and its teacher's hash, and what led to it."""
    which = {
        "checkpoint": f"{place.path.parent.name}/{place.path.name}",
        "sha256": place.state["files"]["teacher.safetensors"],
    }
    write_atomic(run / NAME, (json.dumps(which | record, indent=1) + "\n").encode())


def read(run: Path) -> dict[str, Any]:
    """Return the record of a run's choice. Raises CheckpointError where there is none, or a damaged one."""
    path = run / NAME
    if not path.is_file():
        raise CheckpointError(f"{run}{SUFFIX}: nothing was chosen there (no {NAME}); {_AGAIN}")
    return read_json(path, _FORM, _AGAIN, CheckpointError)


def find(run: Path) -> Checkpoint:
    """Return the chosen checkpoint of a run. Raises CheckpointError where it is gone, or is another one by now."""
    record = read(run)
    stage, _, step = record["checkpoint"].partition("/")
    if not stage or stage.startswith(".") or "/" in step or not step.isdigit():
        raise CheckpointError(f"{run / NAME}: checkpoint {record['checkpoint']!r} is not STAGE/STEP; {_AGAIN}")
    if not (run / stage / step / "state.json").is_file():
        raise CheckpointError(f"{run / stage / step}: was chosen and is gone; {_AGAIN}")
    found = checkpoint.read(run / stage / step)
    if found.state["files"].get("teacher.safetensors") != record["sha256"]:
        raise CheckpointError(f"{found.path}: holds other weights than those that were chosen; {_AGAIN}")
    return found
