"""Ranges of the numbers of a configuration, checked before anything is done.

A probability of 2, no process at all or a negative weight would otherwise change what is computed, hang, or end in an
error somewhere else that names neither key nor value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from meddap.settings import SettingsError


class Allowed(NamedTuple):
    """From `low` to `high`, without `low` itself where it is `above`; a list has `length` numbers, `rising` ones."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    length: int | None = None
    rising: bool = False

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            each = "finite numbers" if self.length else "a finite number"
        elif math.isinf(self.high):
            each = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        else:
            each = f"above {self.low:g}, up to {self.high:g}" if self.above else f"from {self.low:g} to {self.high:g}"
        if self.length is None:
            return each
        order = "below" if self.strict else "not above"
        return f"{self.length} numbers, {each}" + f", the first {order} the second" * self.rising

    @property
    def strict(self) -> bool:
        """Whether the numbers of a list must differ: an empty window holds no value."""
        return math.isinf(self.low)


SHARE = Allowed(0, 1)
POSITIVE = Allowed(0, above=True)
COUNT = Allowed(1)  # 1 or more
NOT_NEGATIVE = Allowed(0)


def check_ranges(where: str, tree: object, table: Mapping[str, Allowed]) -> None:
    """Raise SettingsError for the first setting outside its range; null is passed over.

    where  prefix of the keys: "" or "stages.NAME."
    """
    for key, allowed in table.items():
        value = _at(tree, key)
        if value is not None and not _fits(value, allowed):
            raise SettingsError(f"{where}{key}={value}: expected {allowed}")


def _at(tree: object, key: str) -> Any:
    for name in key.split("."):
        tree = getattr(tree, name, None)
    return tree


def _fits(value: Any, allowed: Allowed) -> bool:
    numbers: list[float] = list(value) if isinstance(value, list) else [value]
    if allowed.length not in (None, len(numbers)):
        return False
    # written so that NaN fits nowhere
    inside = all(
        math.isfinite(each) and (allowed.low < each if allowed.above else allowed.low <= each) and each <= allowed.high
        for each in numbers
    )
    return inside and (
        not allowed.rising or numbers[0] < numbers[1] or (not allowed.strict and numbers[0] == numbers[1])
    )
