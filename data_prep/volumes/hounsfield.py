"""Evidence that a volume is in Hounsfield units: where its air, its soft tissue and its ends lie.

What it cannot tell: a shift so small, or a factor such that air and soft tissue stay near their places. It mends
nothing: where an intercept was lost, −1024 and −1000 both pass, and air itself lies anywhere from −1010 to −980.
"""

from __future__ import annotations

import copy

import numpy as np

from data_prep.config import CtConfig, PrepConfig
from data_prep.schema import AIR_HU
from data_prep.volumes.volume import RejectedSeries

_MOST = 400_000  # voxels that the histogram is taken from
_LEAST = 10_000  # voxels whose histogram says something
_REMEDY = "; values=trust takes it"
_BODY = -500  # above it a voxel is not air
_CLIPPED = 0.3  # a larger share of voxels below −1024 is padding, or values that were shifted or stretched
_PADDED = 0.01  # share of voxels far below −1024 from which on they may hide that nothing is air
_SOFT = 300  # soft tissue without contrast medium ends below it: what is cut off above is bone and vessels


def check(
    voxels: np.ndarray, notes: dict[str, object], config: PrepConfig, *, declared: bool = False
) -> dict[str, object]:
    """Return notes on the values of a CT, int16 in any order of axes; `notes` says how it was converted.

    declared  a header says that it is a CT: then one that is too small for evidence is taken, and noted

    Raises RejectedSeries with the evidence for a volume that is not in HU, unless `config.values` is "trust".
    """
    if declared and voxels.size < _LEAST:
        return {"values_unchecked": f"fewer than {_LEAST} voxels"}
    against, found = _judge(voxels, notes)
    if not against:
        return found
    if isinstance(config, CtConfig) and config.values == "trust":
        return {**found, "values_trusted": against.removesuffix(_REMEDY)}
    raise RejectedSeries(against)


def _judge(voxels: np.ndarray, notes: dict[str, object]) -> tuple[str, dict[str, object]]:
    """Return what speaks against HU, "" if nothing does, and notes."""
    histogram = Histogram(voxels)
    low, high = histogram.first, histogram.last
    if low >= 0 or high - low < 50 or high <= _BODY:  # every voxel counts, not only those of the sample
        low, high = int(voxels.min()), int(voxels.max())
    if low >= 0:  # even without air around it a body holds fat, and noise
        return f"values {low} to {high}, none below 0: not in HU; a label map, an MR or a picture?", {}
    if voxels.size < _LEAST:
        return "", {"values_unchecked": f"fewer than {_LEAST} voxels"}
    far = _share(notes, "voxels_far_below_air", voxels)
    # padding that was compressed with loss is there too, but then around a body
    if far > 0.1 and histogram.share(-300) < 0.15 * (1 - far):
        why = f"{far:.0%} of its voxels are far below −1024, few above −300: not in HU; an intercept applied twice?"
    elif high <= _BODY:
        return "", {}  # nothing but air
    elif high - low < 50:
        why = f"values {low} to {high}: not in HU; normalised?"
    elif against := histogram.misplaced(_share(notes, "voxels_below_air", voxels)) or histogram.windowed():
        why = f"{against} (values {voxels.min()} to {voxels.max()})"
    elif against := histogram.padded(far):
        why = f"{against} (values {voxels.min()} to {voxels.max()}, without its padding)"
    else:
        return "", histogram.oddities()
    return why + _REMEDY, {}


def _share(notes: dict[str, object], name: str, voxels: np.ndarray) -> float:
    return int(str(notes.get(name, 0))) / voxels.size


class Histogram:
    """Counts of the whole HU of a volume, from a regular sample of its voxels.

    counts  (N,) of AIR_HU, AIR_HU + 1 …
    """

    def __init__(self, voxels: np.ndarray) -> None:
        step = int(np.ceil((voxels.size / _MOST) ** (1 / 3)))
        sample = voxels[::step, ::step, ::step].ravel(order="K")
        self.counts = np.bincount(sample.astype(np.int32) - AIR_HU)
        self.total = sample.size
        self._below = np.concatenate([[0], np.cumsum(self.counts)]) / self.total
        self.first, self.last = (int(end) + AIR_HU for end in np.flatnonzero(self.counts)[[0, -1]])

    def share(self, low: float = AIR_HU, high: float = 32768) -> float:
        """Return the share of voxels in low ≤ HU < high."""
        start, stop = (int(np.clip(end - AIR_HU, 0, len(self.counts))) for end in (low, high))
        return float(self._below[max(stop, start)] - self._below[start])

    def peak(self, low: int, high: int, width: int) -> tuple[int, float]:
        """Return the HU between `low` and `high` with most voxels within `width` of it, and their share."""
        places = np.arange(max(low, self.first), min(high, self.last + 1))
        if not len(places):
            return low, 0.0
        ends = [np.clip(places + end - AIR_HU, 0, len(self.counts)) for end in (-width, width + 1)]
        shares = self._below[ends[1]] - self._below[ends[0]]
        best = int(shares.argmax())
        return int(places[best]), float(shares[best])

    def misplaced(self, below: float = 0.0) -> str:
        """Return the evidence that air or soft tissue does not lie where it does in HU, else "".

        below  share of the voxels that were below −1024 before they were clipped
        """
        solid, soft = self.share(-300), self.share(-300, 400)
        if solid > 0.001 and soft < 0.02 * solid:
            return f"only {soft / solid:.1%} of what is not air lies between −300 and 400, soft tissue: not in HU"
        near = self.share(-150, 200)
        moved = self.share(-300, -150) > 0.35 * near or near < 0.6 * soft
        if below > _CLIPPED and soft > 0.0002 and moved:
            return (
                f"{below:.0%} of its voxels are below −1024, and {near / soft:.0%} of those between −300 and 400 lie "
                "between −150 and 200, fat and soft tissue: not in HU"
            )
        at, much = self.peak(800, 32768, 20)
        if much > 0.25:
            return f"{much:.0%} of its voxels lie near {at}: not in HU; numbers of 12 bits that wrapped?"
        if self.share(high=-300) < 0.005:  # a cut-out without air is of tissue, and of fat or noise
            bone, bright, dark = self.share(600), self.share(300), self.share(high=-30)
            if bone > 0.25:
                return f"no air, and {bone:.0%} of its voxels are above 600: not in HU; an intercept that was lost?"
            if bright > 0.15 and dark < 0.005:
                return f"no air, no fat, and {bright:.0%} of its voxels are above 300: not in HU; an MR?"
        value, outside = self._background()
        solid, soft = solid - (outside if value >= -300 else 0), soft - (outside if -300 <= value < 400 else 0)
        if outside and solid > 0.001 and soft < 0.25 * solid:
            return (
                f"{outside:.0%} of its voxels are {value}, and {soft / solid:.1%} of the others soft tissue: not in HU"
            )
        dark = self.share(high=-300)
        if dark > 0.05 and self.share(high=-750) < 0.0005:  # lungs without any air or airway are not scanned
            return f"{dark:.0%} of its voxels are below −300, none below −750, where air and lungs are: not in HU"
        at, much = self.peak(-940, -150, 20)
        if much > 0.25 and self.share(high=at - 60) < 0.001:  # lungs lie there too, with darker air in them
            return f"{much:.0%} of its voxels lie near {at}, hardly any below; air is at −1000: not in HU"
        at, much = self.peak(-150, -20, 10)
        if much > 0.25 and self.share(high=at - 15) < 0.005:  # fat lies there too, with more noise
            return f"{much:.0%} of its voxels lie near {at}, hardly any below; air is at −1000: not in HU"
        return ""

    def padded(self, far: float) -> str:
        """Return the evidence against HU of what is not padding, where nothing but padding looks like air, else "".

        far  share of the voxels that were far below −1024 before they were clipped: padding, most often, as is a value
             of −1024 or less with nothing near it
        """
        inner = copy.copy(self)
        inner.counts = self.counts.copy()
        alone = self.share(AIR_HU + 1, AIR_HU + 101) == 0
        padding = self.counts[0] if alone or far > 0.9 * self._exactly(AIR_HU) else round(far * self.total)
        inner.counts[0] = max(0, self.counts[0] - padding)
        inner.total = int(inner.counts.sum())
        if self.total - inner.total < _PADDED * self.total or inner.total < _LEAST / 10:
            return ""
        inner._below = np.concatenate([[0], np.cumsum(inner.counts)]) / inner.total
        inner.first = int(np.flatnonzero(inner.counts)[0]) + AIR_HU
        return inner.misplaced() if inner.share(high=-300) < 0.005 else ""

    def windowed(self) -> str:
        """Return the evidence that values were cut off within air or soft tissue, or masked, else ""."""
        if self.first > -900 and self._stands_out(self.first, 1, 0.02):
            return f"{self._exactly(self.first):.0%} of its voxels are exactly {self.first}, the lowest: windowed"
        narrow = self.last < _SOFT or (self.last < 1000 and self.first > _BODY)
        if narrow and (self._stands_out(self.last, -1, 0.001) or self._cut_off()):
            return f"{self._exactly(self.last):.1%} of its voxels are exactly {self.last}, the highest: windowed"
        value = self._masked()
        if value is not None and self.share(high=-900) < 0.02:
            return f"{self._exactly(value):.0%} of its voxels are exactly {value}, and none are air: masked"
        return ""

    def oddities(self) -> dict[str, object]:
        """Return what does not speak against HU but should be known."""
        found: dict[str, object] = {}
        if self.last < 32767 and self._stands_out(self.last, -1, 0.001):
            found["values_cut_off_at"] = self.last
        value = self._masked()
        if value is not None:
            found["values_masked_with"] = value
        return found

    def _exactly(self, value: int) -> float:
        return self.share(value, value + 1)

    def _stands_out(self, value: int, inwards: int, least: float) -> bool:
        """Return whether an end holds far more voxels than the values beside it, which are those of an image."""
        beside = self._beside(*((value + 1, value + 51) if inwards > 0 else (value - 50, value)))
        body = max(self.share(_BODY), 1e-9)
        often = self._exactly(value) > least * (1 if inwards > 0 else body)
        return often and (beside > 0).mean() > 0.5 and self._exactly(value) * self.total > 10 * max(beside.mean(), 3)

    def _cut_off(self) -> bool:
        """Return whether the highest value is more frequent than those below it, which no tail of an image is."""
        beside = self._beside(self.last - 50, self.last)
        often, present = self._exactly(self.last) * self.total, (beside > 0).mean()
        return (present > 0.5 and often > 3 * max(beside.mean(), 7)) or (
            present > 0.2 and often > 30 * max(beside.mean(), 3)
        )

    def _background(self) -> tuple[int, float]:
        """Return the value that most voxels have, and their share, where nothing is air; then they are not tissue."""
        value = int(self.counts.argmax()) + AIR_HU
        share = self._exactly(value)
        return (value, share) if share > 0.5 and self.share(high=-900) < 0.02 else (value, 0.0)

    def _masked(self) -> int | None:
        """Return the value that a fifth of the voxels have although it is not air and others are beside it."""
        start = -900 - AIR_HU
        if len(self.counts) <= start:
            return None
        value = int(self.counts[start:].argmax()) - 900
        near = self._beside(value - 3, value + 4) > 0
        image = (self.counts[start:] > 0).sum() > 100 and near.sum() > 3  # neither a drawing nor coarse steps
        return value if self._exactly(value) > 0.2 and image else None

    def _beside(self, low: int, high: int) -> np.ndarray:
        """Return the counts of low ≤ HU < high, 0 beyond the histogram."""
        places = np.arange(low, high) - AIR_HU
        inside = (places >= 0) & (places < len(self.counts))
        return np.where(inside, self.counts[np.clip(places, 0, len(self.counts) - 1)], 0)
