"""Anomalies from few slices: residual adapters at several depths of the frozen encoder (MVFA, arXiv 2403.12570).

A few normal and abnormal training slices, changed in eleven ways, train adapters behind several blocks. A patch is
scored by how much more it is like the class vector "abnormal" than "normal", and by its distance to a memory of the
normal slices, at each depth. The class vectors are what the task says of each to an encoder with a text tower
(`absent_prompts`, `prompts`); others learn them. With normal slices alone nothing is trained, and the distance decides.

Both scores are scaled by validation patients, where the reference takes minimum and maximum over the test set.
Validation patients choose the epoch and the share of a slice's patches that makes its score, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.config import FewShotAnomalyConfig, TaskConfig
from eval.contract import Choices, Context, Needs, Outcome, prediction_of, score
from eval.data.cohorts import Cohort
from eval.encoders import language
from eval.networks import residual_adapters
from eval.networks.residual_adapters import Middles, ResidualAdapters
from eval.probes import anomaly, few_shot, prompts
from meddap.settings import SettingsError

_BETAS = (0.5, 0.999)  # of Adam


@dataclass(frozen=True)
class Support:
    """The slices of one draw: images (N, S, h, w) in 0…1, abnormal (N,) in {0, 1}, masks and known (N, h, w) in {0, 1},
    None where there are no label maps."""

    images: torch.Tensor
    abnormal: torch.Tensor
    masks: torch.Tensor | None
    known: torch.Tensor | None


@dataclass(frozen=True)
class Scorer:
    """One fit: adapters (None: the encoder's own tokens are compared), and the memory (K, E) of each depth."""

    adapters: ResidualAdapters | None
    memory: dict[int, torch.Tensor]
    kind: str

    def maps(self, cohort: Cohort, passing: Passing, batch_size: int) -> np.ndarray:
        """Return (2, N, P): the sums over depths of abnormal probabilities (0 without adapters) and distances."""
        parts = []
        for start in range(0, len(cohort), batch_size):
            rows = np.arange(start, min(start + batch_size, len(cohort)))
            with torch.no_grad():
                parts.append(self._maps(torch.from_numpy(cohort.images[rows]).float(), passing).cpu())
        return torch.cat(parts, dim=1).numpy()

    def _maps(self, images: torch.Tensor, passing: Passing) -> torch.Tensor:
        middles, owner, patches = passing(images, self.adapters)
        near, far = (torch.zeros((), device=owner.device) for _ in range(2))
        for number, middle in middles[self.kind].items():
            mine = middle[:, -patches:]
            far = far + residual_adapters.distances(mine, self.memory[number])
            if self.adapters is not None:
                near = near + self.adapters.logits(mine).softmax(dim=-1)[..., 1]
        both = torch.stack([near.expand_as(far), far], dim=-1)
        return residual_adapters.mean_by(both, owner, len(images)).movedim(-1, 0)


@dataclass(frozen=True)
class Passing:
    """A pass of images through the frozen encoder with adapters behind `blocks`."""

    encoder: Any
    blocks: tuple[int, ...]

    def __call__(self, images: torch.Tensor, adapters: ResidualAdapters | None) -> tuple[Middles, torch.Tensor, int]:
        """Return the middles of (N, S, h, w) images, the slice of each of their M planes, and the patches of a plane.

        The sequences of a slice pass one by one; one that is absent (0 everywhere) does not. Without adapters the
        encoder's own tokens take the place of the middles.
        """
        there = images.flatten(2).amax(dim=2) > 0
        there[:, 0] |= ~there.any(dim=1)
        owner, channel = there.nonzero(as_tuple=True)
        device = self.encoder.device
        planes = self.encoder.prepare(images[owner, channel][:, None]).to(device)
        middles = residual_adapters.empty_middles()

        def change(number: int, tokens: torch.Tensor) -> torch.Tensor:
            if adapters is not None:
                return adapters.change(number, tokens, middles)
            for kind in residual_adapters.KINDS:
                middles[kind][number] = tokens
            return tokens

        self.encoder.adapted(planes, self.blocks, change)
        side = images.shape[-1] // self.encoder.patch_size
        return middles, owner.to(device), side * side


@dataclass(frozen=True)
class FewShotAnomaly:
    """The fits of each number of abnormal slices, what scales their two scores (low, high of each), and the choices."""

    fits: dict[int, list[Scorer]]
    scales: dict[int, list[np.ndarray]]
    edges: dict[int, np.ndarray]
    passing: Passing
    task: TaskConfig
    choices: Choices
    refitted: bool = False

    def predict(self, test: Cohort) -> list[Outcome]:
        found = []
        for abnormal, fits in self.fits.items():
            scales = self.scales[abnormal]
            maps = np.stack(
                [fused(fit.maps(test, self.passing, self.task.batch_size), scale) for fit, scale in zip(fits, scales)]
            )
            variant = {"abnormal": abnormal}
            top = self.choices[f"{abnormal} abnormal"]["top"]
            scores = np.stack([anomaly.slice_scores(each, top)[:, None] for each in maps])
            found.append(Outcome(prediction_of(scores, test, self.task), variant))
            if test.examples.values:
                pixels = anomaly.pixel_counts(maps, test, self.edges[abnormal])
                found.append(Outcome(pixels, {**variant, **anomaly.PIXELS}))
        return found


def needs(task: TaskConfig) -> Needs:
    """Return what is read: images, for the adapters change what passes through the encoder."""
    return "images"


def lacking(encoder: object) -> str:
    """Return why an encoder cannot be adapted; "" where it can."""
    if not hasattr(encoder, "adapted"):
        return "it has no blocks between which adapters could be"
    if getattr(encoder, "sequences", None):
        return "it takes several sequences at once; adapters are for encoders of one channel"
    return ""


def fit(train: Cohort, val: Cohort, context: Context) -> FewShotAnomaly:
    """Fit on every draw of slices, for each number of abnormal ones.

    Raises SettingsError where there are too few slices, or for an encoder that cannot be adapted.
    """
    task, config, encoder = context.task, context.task.few_shot_anomaly, context.encoder
    if reason := lacking(encoder):
        raise SettingsError(f"{encoder.source}: few_shot_anomaly: {reason}")
    _check_counts(train, config)
    count = min(config.depths, encoder.depth)
    passing = Passing(encoder, tuple(encoder.depth * (place + 1) // count - 1 for place in range(count)))
    vectors = class_vectors(context, train.names)
    kind = residual_adapters.KINDS[0 if train.examples.values else 1]
    found = FewShotAnomaly({}, {}, {}, passing, task, {"blocks": list(passing.blocks)})
    for abnormal in config.abnormal:
        # of each draw, the fits after each number of epochs and what they say of the validation patients
        draws = []
        for draw in range(config.draws):
            support = _support(train, config.normal, abnormal, np.random.default_rng((task.seed, draw)), task.size)
            fits = list(_fits(support, passing, config, vectors, kind, task.seed + draw))
            draws.append([(epochs, each, each.maps(val, passing, task.batch_size)) for epochs, each in fits])
        values: dict[tuple[int, float], float] = {}
        for place in range(len(draws[0])):
            maps = [fused(each[place][2], scale_of(each[place][2])) for each in draws]
            for top in config.top:
                each = [score(anomaly.slice_scores(one, top)[:, None], val, task) for one in maps]
                values[place, top] = float(np.mean(each))
        place, top = max(values, key=values.__getitem__)
        chosen = [each[place] for each in draws]
        found.fits[abnormal] = [each for _, each, _ in chosen]
        found.scales[abnormal] = [scale_of(maps) for _, _, maps in chosen]
        on_val = [fused(maps, scale) for (_, _, maps), scale in zip(chosen, found.scales[abnormal])]
        found.edges[abnormal] = anomaly.edges_of(np.stack(on_val))
        found.choices[f"{abnormal} abnormal"] = {"epochs": chosen[0][0], "top": top}
    return found


def class_vectors(context: Context, names: Sequence[str]) -> torch.Tensor | None:
    """Return (2, E) features of what is said of normal and of abnormal slices; None without a text tower."""
    tower = language.of(context.encoder)
    if isinstance(tower, str):
        return None
    said = prompts.of_task(context.task, names)
    return prompts.ensemble(tower, [*said.absent, *said.present])


def scale_of(maps: np.ndarray) -> np.ndarray:
    """Return (2, 2) the lowest and the highest of each of the two scores (2, N, P) of validation patients."""
    flat = maps.reshape(2, -1)
    return np.stack([flat.min(axis=1), flat.max(axis=1)], axis=1)


def fused(maps: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return (N, P) the mean of the two scores (2, N, P), each scaled so that `scale` becomes 0 and 1, not clipped."""
    low, high = scale[:, 0, None, None], scale[:, 1, None, None]
    spread = np.where(high > low, high - low, 1)
    return ((maps - low) / spread).mean(axis=0).astype(np.float32)


def _check_counts(train: Cohort, config: FewShotAnomalyConfig) -> None:
    states = train.targets[:, 0]
    for key, wanted, there in (
        ("normal", [config.normal], int((states == 0).sum())),
        ("abnormal", config.abnormal, int((states == 1).sum())),
    ):
        if max(wanted) > there:
            raise SettingsError(
                f"few_shot_anomaly.{key}={max(wanted)}: {there} {key} training slices; give a smaller number"
            )


def _support(train: Cohort, normal: int, abnormal: int, generator: np.random.Generator, side: int) -> Support:
    """Draw slices of both kinds, each from as many patients as there are."""
    states = train.targets[:, 0]
    drawn = [
        few_shot.of_patients(np.flatnonzero(states == state), train.subjects, count, generator)
        for state, count in ((0, normal), (1, abnormal))
    ]
    rows, examples = np.concatenate(drawn), train.examples
    images = torch.from_numpy(np.stack([train.images[row] for row in rows])).float()
    labels = torch.from_numpy(states[rows]).float()
    if not examples.values:
        return Support(images, labels, None, None)
    maps = np.stack([train.maps(side)[row] for row in rows])
    masks, known = np.isin(maps, examples.values), ~np.isin(maps, examples.ignored)
    return Support(images, labels, torch.from_numpy(masks).float(), torch.from_numpy(known).float())


def _fits(
    support: Support,
    passing: Passing,
    config: FewShotAnomalyConfig,
    vectors: torch.Tensor | None,
    kind: str,
    seed: int,
) -> Iterator[tuple[int, Scorer]]:
    """Yield a fit after each number of epochs; one without adapters where no slice is abnormal."""
    images = residual_adapters.augmented(support.images)
    abnormal = support.abnormal.repeat(len(images) // len(support.images))
    generator = torch.Generator().manual_seed(seed)
    if not support.abnormal.any():
        yield 0, Scorer(None, _memory(images, None, passing, config, kind, generator), kind)
        return
    masks, known = (
        None if each is None else (residual_adapters.augmented(each[:, None])[:, 0] > 0.5).float()
        for each in (support.masks, support.known)
    )
    device, width = passing.encoder.device, config.width if vectors is None else vectors.shape[1]
    adapters = ResidualAdapters(passing.blocks, passing.encoder.embed_dim, width, vectors, generator).to(device)
    learned = [each for each in adapters.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=config.lr, betas=_BETAS)
    for epoch in range(1, max(config.epochs) + 1):
        for rows in torch.randperm(len(images), generator=generator).split(config.batch_size):
            middles, owner, patches = passing(images[rows], adapters)
            loss = torch.zeros((), device=device)
            for number in passing.blocks:
                where, whether = (
                    adapters.logits(middles[each][number][:, -patches:]) for each in residual_adapters.KINDS
                )
                loss = loss + residual_adapters.presence_loss(whether, owner, abnormal[rows].to(device))
                if masks is not None and known is not None:
                    there, mine = masks[rows].to(device), known[rows].to(device)
                    loss = loss + residual_adapters.places_loss(where, owner, there, mine)
            if not torch.isfinite(loss):
                raise SettingsError(f"few_shot_anomaly.lr={config.lr:g}: the loss is {loss.item()}; lower it")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in config.epochs:
            frozen = _copy(adapters, passing, width, vectors).to(device)
            memory = _memory(images[abnormal == 0], frozen, passing, config, kind, generator)
            yield epoch, Scorer(frozen, memory, kind)


def _copy(adapters: ResidualAdapters, passing: Passing, width: int, vectors: torch.Tensor | None) -> ResidualAdapters:
    found = ResidualAdapters(passing.blocks, passing.encoder.embed_dim, width, vectors, torch.Generator())
    found.load_state_dict(adapters.state_dict())
    return found.requires_grad_(False).eval()


def _memory(
    images: torch.Tensor,
    adapters: ResidualAdapters | None,
    passing: Passing,
    config: FewShotAnomalyConfig,
    kind: str,
    generator: torch.Generator,
) -> dict[int, torch.Tensor]:
    """Return (K, E) middles of all tokens of normal images at each depth, drawn at random where there are too many."""
    parts: dict[int, list[torch.Tensor]] = {number: [] for number in passing.blocks}
    with torch.no_grad():
        for some in images.split(config.batch_size):
            middles = passing(some, adapters)[0][kind]
            for number in passing.blocks:
                parts[number].append(middles[number].flatten(0, 1))
    found = {}
    for number, each in parts.items():
        tokens = torch.cat(each)
        found[number] = tokens[torch.randperm(len(tokens), generator=generator)[: config.memory].to(tokens.device)]
    return found
