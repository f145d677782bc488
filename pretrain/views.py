"""The views of a batch: crops, resized and with their intensities changed, made in batches on its device.

Sampling the parameters of a view and applying them are two functions. Parameters are a function of
(seed, epoch, sample, crop); nothing depends on the batch, the rank or what came before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from data_prep.schema import CT, span
from pretrain import resize
from pretrain.intensity import Intensity
from pretrain.noise import gaussian, uniforms
from pretrain.stream import Batch

_PURPOSES = {"global": 0, "local": 16}  # of the randomness; each crop adds its number
_NEXT_SEQUENCE = 4096  # added for every sequence after the first


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn. Sizes in pixels; scales as shares of the foreground box's area.

    sequences       names of the S sequences
    min_body        a crop holds at least this share of pixels above `body_threshold_hu` (in MR: of foreground) in some
                    sequence: the first of `candidates` boxes that does is taken, else the one with most
    flip            probability of a left-right flip
    window_shift    largest shift of the window's level in HU, mr_shift in widths of the window for MR; window_stretch,
                    relative, of its width. Drawn for each sequence, as noise and blur are; boxes and flips are shared
    noise_p         probability of Gaussian noise, noise_std its largest deviation in window widths
    blur_p          probability of blurring: global crop 0, global crop 1, local crops
    blur_sigma      range of the blur's deviation in pixels of the crop
    gram_size       side of the Gram teacher's crops, or None where there is no Gram teacher
    """

    global_size: int
    global_scale: tuple[float, float]
    local_size: int
    local_scale: tuple[float, float]
    local_number: int
    intensity: Intensity
    sequences: tuple[str, ...] = (CT,)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    min_body: float = 0.0
    body_threshold_hu: float = -500.0
    candidates: int = 4
    flip: float = 0.0
    window_shift: float = 0.0
    mr_shift: float = 0.0
    window_stretch: float = 0.0
    noise_p: float = 0.0
    noise_std: float = 0.0
    blur_p: tuple[float, float, float] = (0.0, 0.0, 0.0)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    gram_size: int | None = None

    @property
    def windows(self) -> np.ndarray:
        """(S, 2) stored values of each sequence that become 0 and 1."""
        return np.array([span(name, self.intensity.window) for name in self.sequences])


@dataclass(frozen=True)
class Views:
    """What student and teacher see, standardised float32.

    global_crops  (2, B, S, h, w)
    local_crops   (L, B, S, l, l)
    gram_crops    (2, B, S, g, g) for the Gram teacher, or None
    present       (B, S) bool on the host, or None where every sample has every sequence
    sequences     names of the S sequences, or () where there is one without a name
    labels        (B, C) int64 classes, −1 where unlabelled, or None where there is no label column
    """

    global_crops: torch.Tensor
    local_crops: torch.Tensor
    gram_crops: torch.Tensor | None = None
    present: torch.Tensor | None = None
    sequences: tuple[str, ...] = ()
    labels: torch.Tensor | None = None

    def part(self, rows: slice) -> Views:
        """The views of some of the batch's images."""
        gram = None if self.gram_crops is None else self.gram_crops[:, rows]
        present, labels = (None if each is None else each[rows] for each in (self.present, self.labels))
        return Views(self.global_crops[:, rows], self.local_crops[:, rows], gram, present, self.sequences, labels)


@dataclass(frozen=True)
class Parameters:
    """One crop of every sample: candidate boxes (B, K, 4) as (row, column, height, width), flip (B,).

    The rest are (B, S), for each sequence its own: low and width of the window in stored values; noise 0 and blur 0
    where there is none; key seeds the noise.
    """

    boxes: torch.Tensor
    flip: torch.Tensor
    low: torch.Tensor
    width: torch.Tensor
    noise: torch.Tensor
    blur: torch.Tensor
    key: torch.Tensor


def make(batch: Batch, settings: ViewSettings, seed: int) -> Views:
    """The views of a batch, on the device of its pixels."""
    body = _body_sums(batch.pixels, settings)

    def crops(drawn: list[Parameters], size: int, how: ViewSettings = settings) -> torch.Tensor:
        if not drawn:
            return batch.pixels.new_empty(0, *batch.pixels.shape[:2], size, size, dtype=torch.float32)
        return torch.stack([render(batch.pixels, body, parameters, size, how) for parameters in drawn])

    whole = [sample_parameters(batch, settings, seed, "global", number) for number in range(2)]
    small = [sample_parameters(batch, settings, seed, "local", number) for number in range(settings.local_number)]
    gram = None
    if settings.gram_size:  # the same boxes and flips, as they are: the anchor sees no distortion
        clean = replace(settings, blur_p=(0.0, 0.0, 0.0), noise_p=0.0)
        gram = crops([_undistorted(parameters, settings) for parameters in whole], settings.gram_size, clean)
    labels = batch.labels.to(batch.pixels.device) if batch.labels.shape[1] else None
    globals_, locals_ = crops(whole, settings.global_size), crops(small, settings.local_size)
    return Views(globals_, locals_, gram, batch.present, settings.sequences, labels)


def whole(batch: Batch, size: int, intensity: Intensity, sequences: tuple[str, ...] = (CT,)) -> torch.Tensor:
    """(B, S, size, size) normalised: the foreground's box of every sample, as it is; `sequences` names the S."""
    row0, row1, column0, column1 = batch.box.to(batch.pixels.device).unbind(dim=1)
    straight = torch.zeros_like(row0, dtype=torch.bool)
    rows = resize.weights(row0, row1 - row0, batch.pixels.shape[2], size, straight).unsqueeze(1)
    columns = resize.weights(column0, column1 - column0, batch.pixels.shape[3], size, straight).unsqueeze(1)
    crops = resize.apply(batch.pixels.float(), rows, columns)
    low, high = crops.new_tensor([span(name, intensity.window) for name in sequences]).view(-1, 2, 1, 1).unbind(dim=1)
    return intensity.normalise(crops, low, high - low)


def _undistorted(parameters: Parameters, settings: ViewSettings) -> Parameters:
    low, high = torch.from_numpy(settings.windows).to(parameters.low).unbind(dim=1)
    same = torch.ones_like(parameters.low)
    return replace(parameters, low=same * low, width=same * (high - low))


def sample_parameters(batch: Batch, settings: ViewSettings, seed: int, kind: str, number: int) -> Parameters:
    """Draw crop `number` of `kind` ("global" or "local") for every sample."""
    count, purpose = settings.candidates, _PURPOSES[kind] + number
    every = [
        uniforms(seed, batch.epoch.numpy(), batch.sample.numpy(), purpose + _NEXT_SEQUENCE * place, 8 + 4 * count)
        for place in range(len(settings.sequences))
    ]
    draws = every[0]  # of the geometry
    scale = settings.global_scale if kind == "global" else settings.local_scale
    boxes = _boxes(batch.box.numpy(), draws[:, 8:].reshape(-1, count, 4), scale, settings.aspect)
    _, shift, stretch, noisy, strength, blurred, sigma, key = np.stack(every, axis=-1)[:, :8].transpose(1, 0, 2)
    low, high = settings.windows.T
    width = (high - low) * (1 + settings.window_stretch * (2 * stretch - 1))
    is_ct = np.array([name == CT for name in settings.sequences])
    most = np.where(is_ct, settings.window_shift, settings.mr_shift * (high - low))
    level = (low + high) / 2 + most * (2 * shift - 1)
    blur_p = settings.blur_p[number if kind == "global" else 2]
    small, large = settings.blur_sigma
    values = (
        boxes,
        draws[:, 0] < settings.flip,
        np.float32(level - width / 2),
        np.float32(width),
        np.float32(np.where(noisy < settings.noise_p, settings.noise_std * strength, 0)),
        np.float32(np.where(blurred < blur_p, small + (large - small) * sigma, 0)),
        (key * 2**32).astype(np.int64),
    )
    return Parameters(*(torch.from_numpy(value).to(batch.pixels.device) for value in values))


def render(
    pixels: torch.Tensor, body: torch.Tensor, parameters: Parameters, size: int, settings: ViewSettings
) -> torch.Tensor:
    """(B, S, size, size) crops of (B, S, H, W) pixels; `body` as `_body_sums` gives it."""
    row, column, height, width = _choose(body, parameters.boxes, settings.min_body).unbind(dim=1)
    rows = resize.weights(row, height, pixels.shape[2], size, torch.zeros_like(parameters.flip)).unsqueeze(1)
    columns = resize.weights(column, width, pixels.shape[3], size, parameters.flip).unsqueeze(1)
    if settings.blur_sigma[1] and any(settings.blur_p):
        blur = _blur_weights(parameters.blur, size)
        rows, columns = blur @ rows, blur @ columns
    crops = resize.apply(pixels.float(), rows, columns)
    low, broad, noise = (each[..., None, None] for each in (parameters.low, parameters.width, parameters.noise))
    crops = settings.intensity.normalise(crops, low, broad)
    if settings.noise_p and settings.noise_std:
        drawn = gaussian(parameters.key.flatten(), tuple(crops.shape[2:]))
        crops = crops + noise / settings.intensity.std * drawn.view(crops.shape)
    return crops


def _boxes(
    foreground: np.ndarray, draws: np.ndarray, scale: tuple[float, float], aspect: tuple[float, float]
) -> np.ndarray:
    """(B, K, 4) boxes (row, column, height, width) in whole pixels, inside the (B, 4) foreground boxes."""
    top, bottom, left, right = (foreground[:, None, side] for side in range(4))
    tall, broad = bottom - top, right - left
    area = tall * broad * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    ratio = np.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * draws[..., 1])
    height = np.clip(np.rint(np.sqrt(area / ratio)), 1, tall)
    width = np.clip(np.rint(np.sqrt(area * ratio)), 1, broad)
    row = top + np.floor(draws[..., 2] * (tall - height + 1))
    column = left + np.floor(draws[..., 3] * (broad - width + 1))
    return np.stack([row, column, height, width], axis=-1).astype(np.int64)


def _body_sums(pixels: torch.Tensor, settings: ViewSettings) -> torch.Tensor:
    """(B, H + 1, W + 1) sums of body pixels above and to the left of each corner."""
    lowest = [span(name, (settings.body_threshold_hu, 0))[0] for name in settings.sequences]
    body = (pixels > pixels.new_tensor(lowest).view(-1, 1, 1)).any(dim=1)
    sums = body.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return torch.nn.functional.pad(sums, (1, 0, 1, 0))


def _choose(sums: torch.Tensor, boxes: torch.Tensor, min_body: float) -> torch.Tensor:
    """(B, 4): of each sample's candidates the first with enough body, else the one with most."""
    row, column, height, width = boxes.unbind(dim=-1)
    image = torch.arange(len(boxes), device=boxes.device).unsqueeze(1)
    inside = (
        sums[image, row + height, column + width]
        - sums[image, row, column + width]
        - sums[image, row + height, column]
        + sums[image, row, column]
    )
    share = inside / (height * width)
    # the first good one outranks all; among the rest the share decides
    best = torch.where(share >= min_body, 2.0, share).argmax(dim=1)
    return boxes[image.squeeze(1), best]


def _blur_weights(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """(…, size, size) Gaussian smoothing of one axis; the identity where sigma is 0; rows sum to 1."""
    place = torch.arange(size, device=sigma.device, dtype=torch.float32)
    squared = (place.unsqueeze(0) - place.unsqueeze(1)).square()
    width = 2 * sigma.clamp(min=1e-3).square()[..., None, None]
    kernel = torch.exp(-squared / width)
    return kernel / kernel.sum(dim=-1, keepdim=True)
