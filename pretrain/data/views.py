"""The views of a batch: crops, resized and with their intensities changed, made in batches on its device.

Sampling the parameters of a view and applying them are two functions. Parameters are a function of
(seed, epoch, sample, crop); nothing depends on the batch, the rank or what came before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from data_prep.schema import CT, span
from pretrain.data import boxes, colour, resize, slices
from pretrain.data.colour import ColourSettings
from pretrain.data.intensity import Intensity
from pretrain.data.randomness import gaussian, uniforms
from pretrain.data.slices import SliceSettings
from pretrain.data.stream import Batch
from pretrain.runtime.device import to_device_async
from pretrain.runtime.memory import ArrayPool

_PURPOSES = {"global": 0, "local": 16}  # of the randomness; each crop adds its number
_MEMORY = ArrayPool(np.float32)
_NOISE_AT_ONCE = 100_000  # pixels
_INTENSITY = 10  # numbers of a crop before those of its boxes: flip, then each sequence's intensities


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn. Sizes in pixels; scales as shares of the foreground box's area or of its sides.

    sequences       names of the S sequences
    channels        C of each sequence: 1 grey, 3 red, green and blue. They share all draws but those of `colour`
    source_intensities  intensity of each of several sources; (): all have `intensity`
    source_thresholds   `body_threshold_hu` of each of several sources; (): all have the same
    scale_of        "area" or "side", see `boxes.draw`
    around_labels   crops are centred at labelled voxels where a sample has some
    min_body        a crop holds at least this share of pixels above `body_threshold_hu` (in MR: of foreground) in some
                    sequence: the first of `candidates` boxes that does is taken, else the one with most
    flip            probability of a left-right flip
    window_shift    largest shift of the window's level in HU, mr_shift in widths of the window for MR; window_stretch,
                    relative, of its width. Drawn for each sequence, as noise and blur are; boxes and flips are shared
    noise_p         probability of Gaussian noise, noise_std its largest deviation in window widths
    blur_p          probability of blurring: global crop 0, global crop 1, local crops
    blur_sigma      range of the blur's deviation in pixels of the crop
    gamma_p         probability of an exponent on the windowed value: global crop 0, global crop 1, local crops; `gamma`
                    its range. Drawn for each sequence (MM-DINOv2 draws one for all)
    colour          distortions of a crop's colours, of three channels alone
    slice           distortions of the whole slice before it is cropped. Where any is possible, slices are clipped to
                    the window before they are resampled, and crops are not clipped again
    gram_size       side of the Gram teacher's crops, or None where there is no Gram teacher
    """

    global_size: int
    global_scale: tuple[float, float]
    local_size: int
    local_scale: tuple[float, float]
    local_number: int
    intensity: Intensity
    sequences: tuple[str, ...] = (CT,)
    channels: int = 1
    source_intensities: tuple[Intensity, ...] = ()
    source_thresholds: tuple[float, ...] = ()
    scale_of: str = "area"
    around_labels: bool = False
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
    gamma_p: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gamma: tuple[float, float] = (0.75, 1.5)
    slice: SliceSettings = SliceSettings()
    colour: ColourSettings = ColourSettings()
    gram_size: int | None = None

    @cached_property
    def planes(self) -> tuple[str, ...]:
        """The sequence of each of the S·C planes of an image."""
        return tuple(name for name in self.sequences for _ in range(self.channels))

    @cached_property
    def windows(self) -> np.ndarray:
        """(K, S·C, 2) stored values of each plane that become 0 and 1, for each source."""
        every = self.source_intensities or (self.intensity,)
        return np.array([[span(name, each.window) for name in self.planes] for each in every])

    @cached_property
    def standards(self) -> np.ndarray:
        """(K, S·C, 2) mean and standard deviation of each plane's windowed values, for each source."""
        every = self.source_intensities or (self.intensity,)
        return np.array([[*zip(each.means, each.stds)] * len(self.sequences) for each in every])

    @cached_property
    def lowest(self) -> np.ndarray:
        """(K, S·C) int64 stored values above which a pixel belongs to the body, for each source."""
        every = self.source_thresholds or (self.body_threshold_hu,)
        return np.array([[int(span(name, (threshold, 0))[0]) for name in self.planes] for threshold in every])

    @cached_property
    def standardised_last(self) -> bool:
        """Whether crops are made in 0…1 and then standardised: several channels, or sources with their own mean."""
        own = (self.intensity.mean, self.intensity.std)
        return self.channels > 1 or any((each.mean, each.std) != own for each in self.source_intensities)

    @cached_property
    def rendered(self) -> Intensity:
        """The intensity of crops as they are made, one of one channel."""
        return Intensity(self.intensity.window, 0.0, 1.0) if self.standardised_last else self.intensity


def of_sources(table: np.ndarray, source: torch.Tensor) -> np.ndarray:
    """Return (B, …) rows of a (K, …) or (1, …) table for images of (B,) sources."""
    return np.broadcast_to(table, (len(source), *table.shape[1:])) if len(table) == 1 else table[source.numpy()]


@dataclass(frozen=True)
class Views:
    """What student and teacher see, standardised float32.

    global_crops  (2, B, S·C, h, w)
    local_crops   (L, B, S·C, l, l)
    gram_crops    (2, B, S·C, g, g) for the Gram teacher, or None
    present       (B, S) bool on the host, or None where every sample has every sequence
    sequences     names of the S sequences, or () where there is one without a name
    labels        (B, C) int64 classes, −1 where unlabelled, or None where there is no label column
    source        (B,) int64 number of each image's source, on the device, and `sources` the names of several; None, ()
                  where there is one
    """

    global_crops: torch.Tensor
    local_crops: torch.Tensor
    gram_crops: torch.Tensor | None = None
    present: torch.Tensor | None = None
    sequences: tuple[str, ...] = ()
    labels: torch.Tensor | None = None
    source: torch.Tensor | None = None
    sources: tuple[str, ...] = ()

    def select(self, rows: slice) -> Views:
        """Return the views of some of the batch's images."""
        gram = None if self.gram_crops is None else self.gram_crops[:, rows]
        present, labels, source = (
            None if each is None else each[rows] for each in (self.present, self.labels, self.source)
        )
        return replace(
            self,
            global_crops=self.global_crops[:, rows],
            local_crops=self.local_crops[:, rows],
            gram_crops=gram,
            present=present,
            labels=labels,
            source=source,
        )


@dataclass(frozen=True)
class Parameters:
    """One crop of every sample: candidate boxes (B, K, 4) as (row, column, height, width), flip (B,).

    The rest are (B, S·C), for each sequence its own, equal in its channels: low and width of the window in stored
    values; noise 0, blur 0 and gamma 1 where there is none; key seeds the noise.
    """

    boxes: torch.Tensor
    flip: torch.Tensor
    low: torch.Tensor
    width: torch.Tensor
    noise: torch.Tensor
    blur: torch.Tensor
    gamma: torch.Tensor
    key: torch.Tensor


Kind = tuple[list[Parameters], int, ViewSettings]  # crops that share a size: what was drawn for each
Distortions = list[list[slices.Distortion]]  # of each sample each plane's


def make(
    batch: Batch,
    settings: ViewSettings,
    seed: int,
    products: bool | None = None,
    sources: tuple[str, ...] = (),
) -> Views:
    """Return the views of a batch, on the device of its pixels.

    sources   names of the sources where there are several
    products  True: matrix products of whole batches, which suit a GPU; False: slice by slice, which suits a CPU; None:
              what suits the device. They agree to float32's last digits
    """
    if products is None:
        products = batch.pixels.device.type != "cpu"
    draw = _by_products if products else _by_sums
    whole = [sample_parameters(batch, settings, seed, "global", number) for number in range(2)]
    small = [sample_parameters(batch, settings, seed, "local", number) for number in range(settings.local_number)]
    kinds = [(whole, settings.global_size, settings), (small, settings.local_size, settings)]
    if settings.gram_size:  # the same boxes and flips, as they are: the anchor sees no distortion
        clean = replace(settings, blur_p=(0.0, 0.0, 0.0), gamma_p=(0.0, 0.0, 0.0), noise_p=0.0)
        windows = of_sources(settings.windows, batch.source)
        kinds.append(([_undistorted(parameters, windows) for parameters in whole], settings.gram_size, clean))
    distortions = _distortions(batch, settings, seed) if settings.slice.on else None
    made = draw(batch, kinds, distortions)
    if settings.channels > 1 and settings.colour.on:
        _change_colours(made, batch, settings, seed)
    if settings.standardised_last:
        _standardise(made, batch, settings)
    global_crops, local_crops, *gram = made
    labels = batch.labels.to(batch.pixels.device) if batch.labels.shape[1] else None
    return Views(
        global_crops,
        local_crops,
        gram[0] if gram else None,
        batch.present,
        settings.sequences,
        labels,
        to_device_async(batch.source, batch.pixels.device) if sources else None,
        sources,
    )


def whole(batch: Batch, size: int, intensity: Intensity, sequences: tuple[str, ...] = (CT,)) -> torch.Tensor:
    """Return (B, S·C, size, size) normalised foreground boxes, without augmentation; `sequences` names the S."""
    row0, row1, column0, column1 = batch.box.to(batch.pixels.device).unbind(dim=1)
    straight = torch.zeros_like(row0, dtype=torch.bool)
    rows = resize.weights(row0, row1 - row0, batch.pixels.shape[2], size, straight).unsqueeze(1)
    columns = resize.weights(column0, column1 - column0, batch.pixels.shape[3], size, straight).unsqueeze(1)
    crops = resize.apply(batch.pixels.float(), rows, columns)
    spans = [span(name, intensity.window) for name in sequences for _ in range(intensity.channels)]
    low, high = crops.new_tensor(spans).view(-1, 2, 1, 1).unbind(dim=1)
    return intensity.normalise(crops, low, high - low)


def _undistorted(parameters: Parameters, windows: np.ndarray) -> Parameters:
    low, high = torch.from_numpy(windows.copy()).to(parameters.low).unbind(dim=2)
    same, none = torch.ones_like(parameters.low), torch.zeros_like(parameters.low)
    return replace(parameters, low=same * low, width=same * (high - low), noise=none, blur=none, gamma=same)


def _distortions(batch: Batch, settings: ViewSettings, seed: int) -> Distortions:
    """Draw what is done to the slices, nothing to those of absent sequences."""
    drawn = [
        slices.sample(settings.slice, seed, batch.epoch.numpy(), batch.sample.numpy(), place)
        for place in range(len(settings.sequences))
        for _ in range(settings.channels)
    ]
    there = batch.present.repeat_interleave(settings.channels, dim=1).tolist()
    return [[one if has else slices.NONE for one, has in zip(each, row)] for each, row in zip(zip(*drawn), there)]


def sample_parameters(batch: Batch, settings: ViewSettings, seed: int, kind: str, number: int) -> Parameters:
    """Draw crop `number` of `kind` ("global" or "local") for every sample."""
    count, purpose = settings.candidates, _PURPOSES[kind] + number
    every = [
        uniforms(
            seed,
            batch.epoch.numpy(),
            batch.sample.numpy(),
            purpose,
            _INTENSITY + (0 if place else count * boxes.DRAWS),  # sequences share the first one's boxes
            place,
        )
        for place in range(len(settings.sequences))
    ]
    scale = settings.global_scale if kind == "global" else settings.local_scale
    candidates = boxes.draw(
        batch.box.numpy(),
        every[0][:, _INTENSITY:].reshape(-1, count, boxes.DRAWS),
        scale,
        settings.aspect,
        scale_of=settings.scale_of,
        labelled=_labelled(batch) if settings.around_labels else None,
    )
    draws = np.stack([each[:, :_INTENSITY] for each in every], axis=-1).transpose(1, 0, 2)
    draws = draws.repeat(settings.channels, axis=2)
    _, shift, stretch, noisy, strength, blurred, sigma, key, bent, gamma = draws
    low, high = np.moveaxis(of_sources(settings.windows, batch.source), 2, 0)
    width = (high - low) * (1 + settings.window_stretch * (2 * stretch - 1))
    is_ct = np.array([name == CT for name in settings.planes])
    most = np.where(is_ct, settings.window_shift, settings.mr_shift * (high - low))
    level = (low + high) / 2 + most * (2 * shift - 1)
    place = number if kind == "global" else 2
    values = (
        candidates,
        every[0][:, 0] < settings.flip,
        np.float32(level - width / 2),
        np.float32(width),
        np.float32(np.where(noisy < settings.noise_p, settings.noise_std * strength, 0)),
        np.float32(np.where(blurred < settings.blur_p[place], _within(settings.blur_sigma, sigma), 0)),
        np.float32(np.where(bent < settings.gamma_p[place], _within(settings.gamma, gamma), 1)),
        (key * 2**32).astype(np.int64),
    )
    return Parameters(*(torch.from_numpy(value).to(batch.pixels.device) for value in values))


def _within(bounds: tuple[float, float], draws: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


def _labelled(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    if batch.voxels is None or batch.voxel_starts is None:
        raise ValueError("around_labels: the batch carries no labelled voxels; read it with voxels=True")
    return batch.voxels.numpy(), batch.voxel_starts.numpy()


def _present(batch: Batch, channels: int) -> torch.Tensor:
    """(B, S·C) bool of the planes that the pixels have: perhaps the first sequences of those that samples may have."""
    return batch.present.repeat_interleave(channels, dim=1)[:, : batch.pixels.shape[1]]


def _change_colours(made: list[torch.Tensor], batch: Batch, settings: ViewSettings, seed: int) -> None:
    """Distort the colours of global and local (C, B, S·3, h, w) crops in place; the Gram teacher's stay as they are."""
    who = seed, batch.epoch.numpy(), batch.sample.numpy()
    for crops, kind in zip(made, _PURPOSES):
        if not len(crops):
            continue
        sequences, count = crops.shape[2] // settings.channels, crops.shape[1]
        every = [
            colour.sample(settings.colour, *who, _PURPOSES[kind] + number, number if kind == "global" else 2, place)
            for number in range(len(crops))
            for place in range(sequences)
        ]
        # draws come sequence by sequence, crops sample by sample
        rows = np.arange(len(crops) * sequences * count).reshape(-1, sequences, count).swapaxes(1, 2).ravel()
        colour.apply(crops.view(-1, settings.channels, *crops.shape[3:]), colour.joined(every).take(rows))


def _standardise(made: list[torch.Tensor], batch: Batch, settings: ViewSettings) -> None:
    """Standardise (C, B, S·C, h, w) crops in 0…1 in place, each image as its source says."""
    several = len(settings.standards) > 1
    values = torch.from_numpy(
        np.float32(of_sources(settings.standards, batch.source) if several else settings.standards)
    )
    mean, std = to_device_async(values, batch.pixels.device)[:, : batch.pixels.shape[1], :, None, None].unbind(dim=2)
    for crops in made:
        crops.sub_(mean).div_(std)


def _by_products(batch: Batch, kinds: list[Kind], distortions: Distortions | None) -> list[torch.Tensor]:
    """(C, B, S·C, size, size) crops of a batch for each kind, by matrix products of all slices that are there."""
    pixels, settings, there = batch.pixels, kinds[0][2], None
    lowest = torch.from_numpy(settings.lowest if len(settings.lowest) == 1 else settings.lowest[batch.source.numpy()])
    body = boxes.body_sums(pixels, to_device_async(lowest, pixels.device))
    if not bool((present := _present(batch, settings.channels)).all()):
        there = to_device_async(present.flatten().nonzero().squeeze(1), pixels.device)
    seen = pixels.float() if there is None else pixels.flatten(0, 1)[there].unsqueeze(1).float()
    if distortions is not None:
        found = [
            _distorted(planes, box, drawn, settings, source)
            for planes, box, drawn, source in zip(pixels, batch.box.tolist(), distortions, batch.source.tolist())
        ]
        seen = torch.stack([torch.stack(planes) for planes in found])
        seen = seen if there is None else seen.flatten(0, 1)[there].unsqueeze(1)
    crops = []
    for drawn, size, settings in kinds:
        made = [render(seen, body, parameters, size, settings, there) for parameters in drawn]
        crops.append(torch.stack(made) if made else seen.new_empty(_shape(pixels, 0, size)))
    return crops


def render(
    pixels: torch.Tensor,
    body: torch.Tensor,
    parameters: Parameters,
    size: int,
    settings: ViewSettings,
    there: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (B, S·C, size, size) crops of (B, S·C, H, W) float32 pixels; `body` as `boxes.body_sums` gives it.

    there  (M,) which of the B · S·C planes `pixels`, (M, 1, H, W), has; the crops of the others are black. None: all
    """
    count, sequences = parameters.low.shape
    row, column, height, width = boxes.choose(body, parameters.boxes, settings.min_body).unbind(dim=1)
    rows = resize.weights(row, height, pixels.shape[2], size, torch.zeros_like(parameters.flip)).unsqueeze(1)
    columns = resize.weights(column, width, pixels.shape[3], size, parameters.flip).unsqueeze(1)
    own = [parameters.low, parameters.width, parameters.noise, parameters.blur, parameters.gamma, parameters.key]
    if there is not None:
        sample = there // sequences
        rows, columns, own = rows[sample], columns[sample], [each.flatten()[there].unsqueeze(1) for each in own]
    low, broad, noise, sigma, gamma, key = own
    if settings.blur_sigma[1] and any(settings.blur_p):
        blur = resize.blur_weights(sigma, size)
        rows, columns = blur @ rows, blur @ columns
    crops = resize.apply(pixels, rows, columns)
    low, broad, noise, gamma = (each[..., None, None] for each in (low, broad, noise, gamma))
    bent = gamma if any(settings.gamma_p) else None
    crops = settings.rendered.normalise(crops, low, broad, gamma=bent, clip=not settings.slice.on)
    if settings.noise_p and settings.noise_std:
        drawn = gaussian(key.flatten(), tuple(crops.shape[2:]))
        crops = crops + noise / settings.rendered.stds[0] * drawn.view(crops.shape)
    if there is None:
        return crops
    whole = crops.new_full((count * sequences, size, size), settings.rendered.black)
    return whole.index_copy_(0, there, crops[:, 0]).unflatten(0, (count, sequences))


def _by_sums(batch: Batch, kinds: list[Kind], distortions: Distortions | None) -> list[torch.Tensor]:
    """The same, slice by slice while it lies in the cache: box by box, and only what each needs."""
    pixels, settings = batch.pixels, kinds[0][2]
    crops = [torch.from_numpy(_MEMORY.array(_shape(pixels, len(drawn), size))) for drawn, size, _ in kinds]
    numbers = [[_numbers(parameters) for parameters in drawn] for drawn, _, _ in kinds]
    sizes = [size for _, size, _ in kinds]
    present = _present(batch, settings.channels)
    there, lowest, sources = present.tolist(), of_sources(settings.lowest, batch.source).tolist(), batch.source.tolist()
    for image, planes in enumerate(pixels.numpy()):
        body = boxes.body(planes, lowest[image])
        mine = [[[values[image] for values in each] for each in of_kind] for of_kind in numbers]
        chosen = [
            [boxes.choose_one(body, candidates, settings.min_body) for candidates, *_ in of_kind] for of_kind in mine
        ]
        if distortions is not None:
            box = batch.box[image].tolist()
            distorted = _distorted(pixels[image], box, distortions[image], settings, sources[image])
            planes = [plane.numpy() for plane in distorted]
        for place, plane in enumerate(planes):
            if not there[image][place]:
                for made in crops:
                    made[:, image, place] = settings.rendered.black
                continue
            wanted = [
                [resize.CropBox(box, flip, blur[place]) for box, (_, flip, _, _, blur, _) in zip(of_boxes, of_kind)]
                for of_boxes, of_kind in zip(chosen, mine)
            ]
            for made, of_kind, found in zip(crops, mine, resize.crops(plane, wanted, sizes)):
                for out, crop, (_, _, low, width, _, gamma) in zip(made.numpy()[:, image, place], found, of_kind):
                    settings.rendered.normalise_into(
                        out, crop, low[place], width[place], gamma=gamma[place], clip=not settings.slice.on
                    )
    for made, (drawn, _, how) in zip(crops, kinds):
        _add_noise(made, drawn, how, present)
    return crops


def _distorted(
    planes: torch.Tensor,
    box: list[int],
    drawn: list[slices.Distortion],
    settings: ViewSettings,
    source: int,
) -> list[torch.Tensor]:
    """The (S·C, H, W) planes of one sample of a source as `slices.distorted` makes them."""
    windows, standards = (
        each[source if len(each) > 1 else 0].tolist() for each in (settings.windows, settings.standards)
    )
    return [slices.distorted(*each) for each in zip(planes, [box] * len(planes), drawn, windows, standards)]


def _numbers(drawn: Parameters) -> list[list]:
    """Boxes, flip, low, width, blur and gamma of each image, as Python's numbers."""
    every = (drawn.boxes, drawn.flip, drawn.low, drawn.width, drawn.blur, drawn.gamma)
    return [each.tolist() for each in every]


def _add_noise(crops: torch.Tensor, drawn: list[Parameters], settings: ViewSettings, there: torch.Tensor) -> None:
    """Add noise to the (C, B, S·C, size, size) crops that drew it and are `there`; a few at once, in the cache."""
    if not drawn:
        return
    strength = torch.stack([parameters.noise for parameters in drawn]) / settings.rendered.stds[0] * there
    keys = torch.stack([parameters.key for parameters in drawn])
    for noisy in strength.nonzero().split(_NOISE_AT_ONCE // crops.shape[-1] ** 2 + 1):
        places = noisy.unbind(1)
        for place, values in zip(noisy.tolist(), gaussian(keys[places], tuple(crops.shape[3:]))):
            crops[tuple(place)].add_(values, alpha=strength[tuple(place)].item())


def _shape(pixels: torch.Tensor, crops: int, size: int) -> tuple[int, ...]:
    return crops, *pixels.shape[:2], size, size
