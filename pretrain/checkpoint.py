"""A checkpoint: a folder per step that a person can read.

    RUN/config.yaml               the resolved configuration
    RUN/<stage>/metrics.jsonl     a row per step
    RUN/<stage>/crops.npz         the crops of the first step
    RUN/<stage>/00000200/         one checkpoint
        student.safetensors       backbone.…, dino_head.…, ibot_head.…
        teacher.safetensors       the same names
        optimizer.safetensors     <moment>.<parameter name>
        gram.safetensors          the Gram teacher's backbone, in stages that have one
        config.yaml               the configuration that made it
        state.json                step, stage, seed, data digest, git commit, SHA-256 of each file

Written under a temporary name, flushed to the disk, then renamed: a folder with eight digits is whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_prep.disk import flush
from data_prep.schema import file_sha256

log = logging.getLogger(__name__)

VERSION = 1
_TEMPORARY = ".writing-"
Tensors = dict[str, torch.Tensor]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run; the message says which and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk. `state` is state.json."""

    path: Path
    state: dict

    @property
    def step(self) -> int:
        return self.state["step"]

    @property
    def stage(self) -> str:
        return self.state["stage"]

    def tensors(self, name: str) -> Tensors:
        """`student`, `teacher` or `optimizer`; CheckpointError where the file does not have its recorded sum."""
        path = self.path / f"{name}.safetensors"
        _verify(path, self.state["files"].get(path.name))
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: {error}; take another checkpoint") from error

    @property
    def config_text(self) -> str:
        return (self.path / "config.yaml").read_text()


def save(folder: Path, tensors: dict[str, Tensors], state: dict, config_text: str) -> Checkpoint:
    """Write `tensors` (file name → tensors) and `state` as FOLDER/<step>, whole or not at all."""
    target = folder / f"{state['step']:08d}"
    temporary = folder / f"{_TEMPORARY}{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, group in tensors.items():
            on_host = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            save_file(on_host, temporary / f"{name}.safetensors")
    except SafetensorError as error:  # what it makes of a full disk
        raise CheckpointError(f"{target}: cannot be written ({error}); make room and start again to go on") from error
    (temporary / "config.yaml").write_text(config_text)
    files = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
    state = {"version": VERSION, **state, "files": files}
    (temporary / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    if target.exists():  # a damaged one that was skipped on resumption
        shutil.rmtree(target)
    os.rename(temporary, target)
    flush(folder)
    return Checkpoint(target, state)


def read(path: Path) -> Checkpoint:
    """The checkpoint in one step folder. Raises CheckpointError where it is none."""
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: no checkpoint there (state.json: {type(error).__name__})") from error
    if state.get("version") != VERSION:
        raise CheckpointError(f"{path}: checkpoint version {state.get('version')}, this program reads {VERSION}")
    return Checkpoint(path, state)


def steps(folder: Path) -> list[Path]:
    """Step folders of a stage, oldest first."""
    return sorted(path for path in folder.glob("[0-9]" * 8) if path.is_dir())


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a stage. A damaged one is skipped with a warning for the one before."""
    for path in reversed(steps(folder)):
        try:
            checkpoint = read(path)
            for name, digest in checkpoint.state["files"].items():
                _verify(path / name, digest)
            return checkpoint
        except CheckpointError as error:
            log.warning("%s; taking the checkpoint before it", error)
    return None


def prune(folder: Path, keep_last: int, keep_every: int, wanted: Container[int] = ()) -> None:
    """Remove all but the first, the last `keep_last`, multiples of `keep_every`, and the steps that are `wanted`."""
    for half_written in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(half_written)
    for path in steps(folder)[1 : -max(keep_last, 1)]:
        if (not keep_every or int(path.name) % keep_every) and int(path.name) not in wanted:
            shutil.rmtree(path)


def git_commit() -> str | None:
    """Commit of the code that runs, or None where it is not a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str]) -> Tensors:
    """The optimizer's moments as `<moment>.<parameter name>`."""
    return {
        f"{moment}.{names[parameter]}": value
        for parameter, moments in optimizer.state.items()
        for moment, value in moments.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, names: dict[torch.nn.Parameter, str]) -> None:
    """Put moments back that `optimizer_tensors` took. Raises CheckpointError for a moment of no parameter."""
    parameters = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        moment, _, name = key.partition(".")
        if name not in parameters:
            raise CheckpointError(f"optimizer.safetensors: {key} belongs to no parameter of this model")
        # the step count lives where the optimizer keeps it: beside the parameter for fused AdamW
        optimizer.state[parameters[name]][moment] = value.to(parameters[name].device)


def _verify(path: Path, digest: str | None) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing from its checkpoint")
    if file_sha256(path) != digest:
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the recorded one")
