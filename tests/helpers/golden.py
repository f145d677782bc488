"""Where the reference implementations' own numbers lie: in tests/golden, the larger ones beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
GOLDEN = TESTS / "golden"
SHARED = TESTS.parent.parent / "shared"


class GoldenFiles:
    """`golden / NAME` is the path of a file; where neither folder has it, the test is skipped with the reason."""

    def __truediv__(self, name: str) -> Path:
        for folder in (GOLDEN, SHARED / "golden"):
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"needs ../shared/golden/{name}, which is not beside this checkout")
