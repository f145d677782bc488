"""Which precision `auto` is, and words that are none."""

from __future__ import annotations

import pytest
import torch

from data_prep.settings import SettingsError
from pretrain.machine import autocast, pick_device, uses_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "expected"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True}, False)]
)
def test_auto_is_bf16_where_the_processor_multiplies_it(found: dict, expected: bool, monkeypatch) -> None:
    """AMX's or AVX-512's bfloat16; elsewhere it would be emulated. A word of one's own wins."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert uses_bf16("auto", CPU) is expected
    assert uses_bf16("bf16", CPU) and not uses_bf16("float32", CPU)
    with autocast("auto", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if expected else torch.float32)


def test_what_is_no_precision_or_device_is_one_line() -> None:
    """The value and what to use instead."""
    with pytest.raises(SettingsError, match="machine.precision: 'half'; use auto, bf16 or float32"):
        uses_bf16("half", CPU)
    with pytest.raises(SettingsError, match="machine.device: 'gpu' is no device; use auto, cpu or cuda"):
        pick_device("gpu")
