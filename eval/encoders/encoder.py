"""The contract between an encoder and the probes, and what `--checkpoint` may name.

A model of your own enters every probe by an object with these attributes and two methods (FrozenEncoder); `--checkpoint
my_file.py:function` calls `function()` of your file to get it. A model of several MRI sequences at once has
`sequences`, their names, too; any other model sees one sequence after the other, and the features of those that are
there are averaged. A model of colour pictures has `channels`, 3.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from eval.config import TaskConfig
from eval.encoders import between_blocks, colours, language, open_clip, pixel_baseline, stored_vectors, third_party
from eval.encoders.language import Language
from meddap.errors import MeddapError
from meddap.settings import SettingsError
from pretrain.data.intensity import Intensity, Level
from pretrain.runtime.device import autocast, pick_device
from pretrain.weights import encoder, initialise
from pretrain.weights.encoder import Encoder
from pretrain.weights.published import DamagedError, WeightsError

Tokens = list[tuple[torch.Tensor, torch.Tensor]]


class FrozenEncoder(Protocol):
    """What a probe needs.

    source, digest   where it came from; a hash over weights and architecture
    patch_size       pixels; embed_dim: channels of one block's features; depth: number of blocks
    window           HU that become 0 and 1
    sequences        optional: names of the S sequences that it takes at once
    channels         optional: C of each sequence, 3 of an encoder of colour pictures, whose channels may also be so
                     many windows of one image; 1 where it is missing
    windows          optional: those windows. `load` sets it
    """

    source: str
    digest: str
    patch_size: int
    embed_dim: int
    depth: int
    window: tuple[float, float]

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Map (N, S·C, h, w) float32 in 0…1 to the network's input; S is 1 for an encoder without `sequences`."""

    def features(self, images: torch.Tensor, blocks: Sequence[int], present: torch.Tensor | None = None) -> Tokens:
        """Return cls (N, D) and patches (N, P, D), row-major, float32, after each block.

        blocks   counted from 0, negative from the end
        present  (N, S) bool, the sequences that each image has; only for an encoder with `sequences`
        """


class CheckpointEncoder:
    """A backbone of ours; see FrozenEncoder. `model` is for probes that train it further."""

    def __init__(self, loaded: Encoder, bf16: bool = True) -> None:
        self.source, self.digest, self.weights = loaded.source, loaded.digest, loaded.digest
        self.patch_size, self.embed_dim = loaded.model.patch_size, loaded.model.embed_dim
        self.depth, self.window = loaded.model.depth, loaded.intensity.window
        self.sequences = loaded.model.sequences  # () where it takes one, whichever
        self.language: Language | str = language.NO_TEXT_TOWER
        self.mean, self.std = loaded.intensity.means, loaded.intensity.stds
        self.channels = loaded.model.channels
        self.device = pick_device("auto")
        self.model = loaded.model.to(self.device)
        self._unit = Intensity((0.0, 1.0), loaded.intensity.mean, loaded.intensity.std)
        self.precision = autocast("auto" if bf16 else "float32", self.device)

    def normalise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Standardise values in 0…1 by these numbers, one for each channel."""
        self.mean, self.std = mean, std
        levels: tuple[Level, Level] = (mean[0], std[0]) if len(mean) == 1 else (mean, std)
        self._unit = Intensity((0.0, 1.0), *levels)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return self._unit.normalise(images)

    def features(self, images: torch.Tensor, blocks: Sequence[int], present: torch.Tensor | None = None) -> Tokens:
        with torch.inference_mode(), self.precision:
            found = self.model.intermediate(images.to(self.device), blocks, present)
        return [(each.cls.float().cpu(), each.merged().float().cpu()) for each in found]

    def adapted(self, images: torch.Tensor, blocks: Sequence[int], change: between_blocks.Change) -> None:
        """Run prepared images (M, C, h, w); behind each of `blocks` (from 0), `change(number, tokens)` gets the tokens
        (M, tokens, D), patches last, and returns those that go on. Gradients flow through it."""
        with self.precision:
            layers = list(self.model.blocks)
            between_blocks.run(lambda: self.model(images), layers, len(images), blocks, change)


def load(checkpoint: str, task: TaskConfig) -> FrozenEncoder:
    """Load the encoder that `--checkpoint` names. Raises SettingsError, CheckpointError, WeightsError.

    RUN, stage or step folder of ours    its teacher
    file or folder of published weights  DINOv3, DINOv2, timm in every layout that `init_from` reads; other vision
                                         transformers in transformers' or timm's folders (eval.encoders.third_party),
                                         CLIP's and SigLIP's with their text towers, BiomedCLIP's of open_clip
    FILE.py:FUNCTION                     an encoder of your own
    random                               a fresh backbone of the architecture of `like`
    pixels                               no network: statistics of the pixels, the baseline of every table
    vectors                              vectors that were written before, where the task's source is `vectors`

    A window that the task names takes the place of the encoder's, and so do a mean and a standard deviation of an
    encoder of ours; windows_as=channels gives it several windows at once.
    """
    as_channels = bool(task.windows) and task.windows_as == "channels"
    found = with_levels(_loaded(checkpoint, task, len(task.windows) if as_channels else 1), task.mean, task.std)
    if as_channels:
        return _with_channels(found, task.windows)
    return found if task.window is None else with_window(found, task.window)


def preprocessing(encoder: FrozenEncoder, size: int) -> dict[str, Any]:
    """Return how images enter an encoder, for the rows of results: `size` in pixels, number of `channels`, and `mean`
    and `std` of each where the encoder says them. What it saw of HU is a row's `window`."""
    said: dict[str, Any] = {"size": size}
    mean, std = (getattr(encoder, name, None) for name in ("mean", "std"))
    if mean is not None and std is not None:
        said |= {
            "channels": len(mean),
            "mean": [round(each, 6) for each in mean],
            "std": [round(each, 6) for each in std],
        }
    return said


def with_levels(found: FrozenEncoder, mean: Sequence[float] | None, std: Sequence[float] | None) -> FrozenEncoder:
    """Return an encoder of ours with another mean and standard deviation, and with a digest of its own. Raises
    SettingsError for another encoder, or another number of numbers than it has channels."""
    if mean is None and std is None:
        return found
    if not isinstance(found, CheckpointEncoder):
        raise SettingsError(f"{found.source}: normalises by its own mean and std; leave mean and std out")
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != found.channels:
            count = f"{found.channels} channel{'s' * (found.channels > 1)}"
            raise SettingsError(f"{key}={list(values)}: {found.source} has {count}; give a number for each")
    levels = tuple(mean or found.mean), tuple(std or found.std)
    if levels == (found.mean, found.std):
        return found
    other = copy.copy(found)  # the same weights
    other.normalise_by(*levels)
    other.weights = other.digest = hashlib.sha256(f"{found.digest} {levels}".encode()).hexdigest()
    return other


def weights_digest(found: FrozenEncoder) -> str:
    """Return a hash over weights and architecture alone; `digest` is one over the windows of a task as well."""
    return str(getattr(found, "weights", found.digest))


def with_window(found: FrozenEncoder, window: Sequence[float]) -> FrozenEncoder:
    """Return the encoder with other HU that become 0 and 1, and with a digest of its own; the same one for its own."""
    pair = (float(window[0]), float(window[1]))
    if pair == tuple(found.window):
        return found
    other: Any = copy.copy(found)  # the same weights
    other.weights, other.window = weights_digest(found), pair
    other.digest = hashlib.sha256(f"{other.weights} {pair}".encode()).hexdigest()
    return cast(FrozenEncoder, other)


def _with_channels(found: FrozenEncoder, windows: Sequence[Sequence[float]]) -> FrozenEncoder:
    """Return an encoder that sees several windows at once. Raises SettingsError for another number of channels."""
    takes = getattr(found, "channels", 1)
    if takes != len(windows):
        raise SettingsError(
            f"windows_as=channels: {found.source} takes {takes} channel{'s' * (takes > 1)}, but windows has "
            f"{len(windows)}; windows_as=choice lets validation patients choose between them"
        )
    other: Any = copy.copy(found)
    other.windows = tuple((float(low), float(high)) for low, high in windows)
    other.weights, other.window = (
        weights_digest(found),
        (min(low for low, _ in windows), max(top for _, top in windows)),
    )
    other.digest = hashlib.sha256(f"{other.weights} {other.windows}".encode()).hexdigest()
    return cast(FrozenEncoder, other)


def _loaded(checkpoint: str, task: TaskConfig, channels: int = 1) -> FrozenEncoder:
    if (checkpoint == stored_vectors.NAME) != (task.source == stored_vectors.NAME):
        raise SettingsError("--checkpoint vectors and source=vectors go together: vectors were written before")
    if checkpoint == stored_vectors.NAME:
        return stored_vectors.StoredVectors(task.data)
    if checkpoint == "pixels":
        return pixel_baseline.PixelBaseline(3 if colours.in_colour(task) else 1)
    if checkpoint == "random":
        if task.like is None:
            raise SettingsError("--checkpoint random: give like=CHECKPOINT, whose architecture it takes")
        return CheckpointEncoder(encoder.random_encoder(task.like, task.seed), task.bf16)
    file, colon, function = checkpoint.rpartition(":")
    if colon and file.endswith(".py"):
        return _own(Path(file), function)
    wanted = 3 if channels == 3 or colours.in_colour(task) else 1
    if open_clip.is_folder(Path(checkpoint)):
        loaded, text = open_clip.load(Path(checkpoint), wanted)
        two_towers = CheckpointEncoder(loaded, task.bf16)
        two_towers.language = text
        return two_towers
    if initialise.is_published(Path(checkpoint)):
        return _published(Path(checkpoint), task, wanted)
    return CheckpointEncoder(encoder.load_encoder(checkpoint), task.bf16)


def _published(path: Path, task: TaskConfig, channels: int) -> FrozenEncoder:
    """Load weights of DINO's kinds into a backbone of ours, others by the library that made them.

    channels  3: the input channels of colour images are kept
    """
    kind = third_party.kind_of(path)
    try:
        return CheckpointEncoder(initialise.published_encoder(path, channels), task.bf16)
    except DamagedError:
        raise
    except (WeightsError, SettingsError):
        if kind is None:
            raise
    library = {"timm": third_party.TimmEncoder, "transformers": third_party.TransformersEncoder}[kind]
    return library(path, task.bf16)


def _own(file: Path, function: str) -> FrozenEncoder:
    """Return what FUNCTION() of the user's FILE returns, checked against the contract."""
    if not file.is_file():
        raise SettingsError(f"{file}: no such file; --checkpoint FILE.py:FUNCTION names a file of yours")
    spec = importlib.util.spec_from_file_location(f"encoder_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}", file)
    assert spec is not None and spec.loader is not None  # there is a loader for every .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise SettingsError(f"{file}: has no {function}(); --checkpoint FILE.py:FUNCTION calls it")
        found: FrozenEncoder = getattr(module, function)()
    except MeddapError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise SettingsError(f"{file}:{function}: {what}; run it with python to see where") from error
    wanted = ("source", "digest", "patch_size", "embed_dim", "depth", "window", "prepare", "features")
    if missing := [name for name in wanted if not hasattr(found, name)]:
        raise SettingsError(f"{file}:{function}: its encoder lacks {', '.join(missing)}; see eval/encoders/encoder.py")
    return found
