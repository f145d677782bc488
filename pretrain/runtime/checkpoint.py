"""A checkpoint: a folder per step that a person can read.

    RUN/config.yaml               the resolved configuration
    RUN/<stage>/metrics.jsonl     a row per step
    RUN/<stage>/crops.npz         the crops of the first step
    RUN/<stage>/00000200/         one checkpoint
        teacher.safetensors       backbone.…, dino_head.…, ibot_head.…
        student.safetensors       the same names
        optimizer.safetensors     <moment>.<parameter name>
        gram.safetensors          the Gram teacher's backbone, in stages that have one
        centres.safetensors       the moving means of targets, in stages with loss.targets=centring
        config.yaml               the configuration that made it
        state.json                step, stage, seed, data digest, git commit, SHA-256 of each file

A run that keeps its parameters in shards (machine.parallel=fsdp) writes student and optimizer in shards too, each rank
its own, and the rest as above; either kind goes on as the other, on any number of processes:

        shards/shard-00001-….safetensors     student.<name>, optimizer.<moment>.<name>, and where each part lies

Written under a temporary name, flushed to the disk, then renamed: a folder with eight digits is whole. All of it is
safetensors and JSON: nothing in a checkpoint is executed. `pretrain/runtime/saving.py` writes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from meddap.disk import file_sha256, flush
from meddap.errors import MeddapError
from pretrain.runtime.distributed import divided

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

log = logging.getLogger(__name__)

VERSION = 2
READABLE = (1, 2)  # 1 had no shards
SHARDS = "shards"
_TEMPORARY = ".writing-"
_STATE = {"step": int, "stage": str, "data_digest": str, "recipe": dict, "files": dict}  # what is read of state.json
Tensors = dict[str, torch.Tensor]


class CheckpointError(MeddapError, ValueError):
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

    @property
    def in_shards(self) -> bool:
        """Whether student and optimizer lie in `shards/`."""
        return (self.path / SHARDS).is_dir()

    def tensors(self, name: str) -> Tensors:
        """Return all of `student`, `teacher`, `optimizer` or `gram`. Raises CheckpointError for a damaged file."""
        path = self.path / f"{name}.safetensors"
        if path.is_file() or not self.in_shards:
            _verify(path, self.state["files"].get(path.name))
            try:
                return load_file(path)
            except SafetensorError as error:
                raise CheckpointError(f"{path}: {error}; take another checkpoint") from error
        found = {
            key: torch.empty(each.size, dtype=each.properties.dtype)
            for key, each in self._known().items()
            if key.startswith(f"{name}.")
        }
        self._read_shards(found)
        return {key.removeprefix(f"{name}."): value for key, value in found.items()}

    def has(self, name: str) -> bool:
        """Whether there is a group `name` (`gram`, `centres`)."""
        return f"{name}.safetensors" in self.state["files"]

    def names(self, name: str) -> set[str]:
        """Return the names of a group's tensors."""
        return set(self._shapes(name))

    def fill(self, name: str, targets: Tensors) -> None:
        """Copy group `name` into `targets`, which may be sharded: of shards, each rank reads what it needs.

        Raises CheckpointError where a tensor is missing on either side or has another shape.
        """
        path = self.path / f"{name}.safetensors"
        if path.is_file() or not self.in_shards:
            self._check(name, targets)
            found = self.tensors(name)
            with torch.no_grad():
                for key, target in targets.items():
                    target.copy_(divided(found[key], target))
            return
        self._check(name, targets)
        self._read_shards({f"{name}.{key}": target for key, target in targets.items()})

    def _shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        path = self.path / f"{name}.safetensors"
        if path.is_file() or not self.in_shards:
            try:
                with safe_open(path, "pt") as file:
                    names = file.keys()
                    return {key: tuple(file.get_slice(key).get_shape()) for key in names}
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: damaged or missing ({error}); take another checkpoint") from error
        known = self._known().items()
        return {key.partition(".")[2]: tuple(each.size) for key, each in known if key.startswith(f"{name}.")}

    def _check(self, name: str, targets: Tensors) -> None:
        shapes = self._shapes(name)
        wrong = sorted(set(shapes) ^ set(targets)) or [
            key for key, target in targets.items() if tuple(shapes[key]) != tuple(target.shape)
        ]
        if wrong:
            raise CheckpointError(
                f"{self.path}: {name}: {wrong[0]} does not belong to this model; give the run another name="
            )

    def _known(self) -> dict[str, TensorStorageMetadata]:
        """Return name → size and type of all tensors in `shards/`."""
        from torch.distributed.checkpoint import HuggingFaceStorageReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        try:
            known = HuggingFaceStorageReader(str(self.path / SHARDS)).read_metadata().state_dict_metadata
            return {key: each for key, each in known.items() if isinstance(each, TensorStorageMetadata)}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged_shards(error) from error

    def _read_shards(self, targets: Tensors) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        reader = dcp.HuggingFaceStorageReader(str(self.path / SHARDS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that every rank reads for itself is what is wanted
            try:
                dcp.load(targets, storage_reader=reader, no_dist=True)
            except (CheckpointException, SafetensorError, OSError, ValueError, KeyError) as error:
                raise self._damaged_shards(error) from error

    def _damaged_shards(self, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"{self.path / SHARDS}: damaged or missing ({type(error).__name__}); take another checkpoint"
        )


def begin(folder: Path, step: int) -> Path:
    """Return an empty temporary folder for the checkpoint of `step`."""
    temporary = folder / f"{_TEMPORARY}{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def write(temporary: Path, tensors: dict[str, Tensors], config_text: str) -> dict[str, str]:
    """Write whole groups (file name → tensors on the host) and the configuration; the SHA-256 of each file."""
    try:
        for name, group in tensors.items():
            save_file(group, temporary / f"{name}.safetensors")
    except SafetensorError as error:  # what it makes of a full disk
        target = temporary.with_name(temporary.name.removeprefix(_TEMPORARY))
        raise CheckpointError(f"{target}: cannot be written ({error}); make room and start again to go on") from error
    (temporary / "config.yaml").write_text(config_text)
    return sums(temporary, [*(f"{name}.safetensors" for name in tensors), "config.yaml"])


def sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files below `folder`, which are flushed to the disk."""
    found = {}
    for name in names:
        flush(folder / name)
        found[name] = file_sha256(folder / name)
    return found


def finish(temporary: Path, state: dict) -> Checkpoint:
    """Write state.json and give the folder its name: from here on the checkpoint is there, and whole."""
    target = temporary.with_name(f"{state['step']:08d}")
    state = {"version": VERSION, **state}
    (temporary / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
    flush(temporary / "state.json")
    flush(temporary)
    if target.exists():  # a damaged one that was skipped on resumption
        shutil.rmtree(target)
    os.rename(temporary, target)
    flush(temporary.parent)
    return Checkpoint(target, state)


def abandon(temporary: Path) -> None:
    """Remove a checkpoint that could not be written."""
    shutil.rmtree(temporary, ignore_errors=True)


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in one step folder. Raises CheckpointError where there is none, or a damaged one."""
    try:
        state = json.loads((path / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no checkpoint there (state.json: {type(error).__name__})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: no checkpoint there (state.json holds a {type(state).__name__})")
    if state.get("version") not in READABLE:
        raise CheckpointError(f"{path}: checkpoint version {state.get('version')}, this program reads {VERSION}")
    for key, kind in _STATE.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path}: state.json has no usable {key!r}; take another checkpoint")
    return Checkpoint(path, state)


def steps(folder: Path) -> list[Path]:
    """Return the step folders of a stage, oldest first."""
    return sorted(path for path in folder.glob("[0-9]" * 8) if path.is_dir())


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint of a stage. A damaged one is skipped, with a warning."""
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
    """Return the commit of the code that runs, or None where it is not a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]) -> Tensors:
    """Return the optimizer's moments as `<moment>.<parameter name>`."""
    return {
        f"{moment}.{names[parameter]}": value
        for parameter, moments in optimizer.state.items()
        for moment, value in moments.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, found: Checkpoint, names: Mapping[torch.Tensor, str]) -> None:
    """Restore the moments that `optimizer_tensors` gave. Raises CheckpointError where they are another model's."""
    kept = found.names("optimizer")
    targets: Tensors = {}
    for parameter, name in names.items():
        if f"step.{name}" not in kept:
            continue  # it has not been moved yet
        # the step count lives where the optimizer keeps it: beside the parameter for fused AdamW
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
        targets |= {f"{moment}.{name}": value for moment, value in optimizer.state[parameter].items()}
    found.fill("optimizer", targets)


def _verify(path: Path, digest: str | None) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing from its checkpoint")
    if file_sha256(path) != digest:
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the recorded one")
