"""A run on the disk: its folder, who holds it, the code that made it, and the checkpoints that a stage starts from."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from meddap.disk import BusyError, sole_writer, write_atomic
from pretrain import build
from pretrain.config import DRAWS, Config, StageConfig, gram_teacher_place, older_recipe, recorded
from pretrain.model.vit import VisionTransformer
from pretrain.runtime import checkpoint
from pretrain.runtime.checkpoint import Checkpoint
from pretrain.runtime.distributed import World

log = logging.getLogger("pretrain")

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("data_prep", "eval", "meddap", "pretrain", "slurm")
_KINDS = (".py", ".yaml", ".sh", ".html")
_BESIDE = ("setup.cfg", "pyproject.toml", "constraints.txt", "Makefile")


class TrainingError(RuntimeError):
    """The run cannot go on; the message says at which step, why and what to do."""


def folder_of(config: Config) -> Path:
    """Folder of the run: OUTPUT/NAME."""
    return Path(config.output) / config.name


@contextmanager
def held(folder: Path, patience: float) -> Iterator[None]:
    """Hold the run's folder. A process killed a moment ago may still hold the lock: wait `patience` seconds for it."""
    until, told = time.monotonic() + patience, False
    while True:
        try:
            with sole_writer(folder):
                yield
            return
        except BusyError:
            if time.monotonic() > until:
                raise
            if not told:
                log.warning("%s: held by another process; waiting up to %.0f s for its end", folder, patience)
            told = True
            time.sleep(1)


def code_files(root: Path = ROOT) -> dict[str, bytes]:
    """Return the program's own files by their names below `root`.

    Those are its packages' sources, configurations and batch scripts, and the files that pin its environment.
    """
    paths = [path for package in _PACKAGES for path in (root / package).rglob("*") if path.suffix in _KINDS]
    paths += [root / name for name in _BESIDE if (root / name).is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def code_digest(files: dict[str, bytes]) -> str:
    """Return twelve hexadecimal digits that identify one state of the code."""
    found = hashlib.sha256()
    for name, payload in files.items():
        found.update(f"{name}\0{len(payload)}\0".encode() + payload)
    return found.hexdigest()[:12]


def keep_code(folder: Path, root: Path = ROOT) -> str:
    """Write RUN/code/DIGEST.tar.gz where the run does not have it yet; return the digest.

    There is one archive for each state of the code that a start had. The same files give the same bytes.
    """
    files = code_files(root)
    name = code_digest(files)
    path = folder / "code" / f"{name}.tar.gz"
    if not path.exists():
        write_atomic(path, _packed(files))
    return name


def _packed(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with gzip.GzipFile(fileobj=memory, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, payload in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            tar.addfile(entry, io.BytesIO(payload))
    return memory.getvalue()


def finished(config: Config, name: str) -> Checkpoint:
    """The last checkpoint of stage `name`. Raises TrainingError where the stage is not finished."""
    found, steps = checkpoint.newest(folder_of(config) / name), recorded(config, name).steps
    if found is None or found.step < steps:
        reached = "has not begun" if found is None else f"stands at step {found.step} of {steps}"
        raise TrainingError(f"stage {name} {reached}; run it first: --stage {name}")
    return found


def anchoring(config: Config, teacher_from: str) -> Checkpoint:
    """The checkpoint that `gram.teacher_from` names. Raises TrainingError where it is not there."""
    name, number = gram_teacher_place(teacher_from)
    found = finished(config, name)
    if number is None or number == found.step:
        return found
    path = folder_of(config) / name / f"{number:08d}"
    if not path.is_dir():
        raise TrainingError(f"{path}: not kept, but gram.teacher_from={teacher_from}; name a step that is")
    return checkpoint.read(path)


def gram_teacher(config: Config, stage: StageConfig, device: torch.device, world: World) -> VisionTransformer | None:
    """The frozen backbone that a stage is anchored to, or None. Raises TrainingError where it is not there."""
    if not stage.gram.teacher_from:
        return None
    found = world.first_does(lambda: anchoring(config, stage.gram.teacher_from))
    model = build.backbone(config.model).to(device).requires_grad_(False).eval()
    tensors = found.tensors("teacher").items()
    model.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in tensors if key.startswith("backbone.")}
    )
    return model


def check_identity(own: Checkpoint, identity: dict) -> None:
    """Raises TrainingError where the run on the disk was made by another recipe or from other data.

    Settings that came after the version which began the run had their defaults then, or what that version did.
    """
    if own.state["data_digest"] != identity["data_digest"]:
        raise TrainingError(f"{own.path}: the shards changed since this run began; give the run another name=")
    recipe = older_recipe(identity["stage"]) | own.state["recipe"]
    if (drew := recipe["draws"]) != DRAWS:
        raise TrainingError(
            f"{own.path}: draws={drew}: a seed gave other crops, masks and batches in the version that began this run "
            f"(now draws={DRAWS}); finish it with the program in its folder code/, or give the run "
            "another name="
        )
    for key, value in identity["recipe"].items():
        if (was := recipe.get(key)) != value:
            raise TrainingError(
                f"{own.path}: {key} was {was} when this run began, now {value}; give the run another name="
            )
