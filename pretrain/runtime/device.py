"""Which device a run uses, and whether that device multiplies bfloat16 in hardware."""

from __future__ import annotations

import torch

from meddap.settings import SettingsError


def pick_device(wish: str, local_rank: int = 0) -> torch.device:
    """Return a run's device. `auto` is the GPU where there is one; of several on a host, each process has its own.

    Raises SettingsError for a device that is not there.
    """
    available = torch.cuda.is_available()
    if wish in ("auto", "cuda") and available:
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    if wish == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(wish)
    except RuntimeError as error:
        raise SettingsError(f"machine.device: {wish!r} is not a device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not available:
        raise SettingsError(f"machine.device: {wish}, but PyTorch finds no GPU; use machine.device=cpu")
    return device


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of a run: bfloat16, or disabled for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether a run of this `precision` multiplies in bfloat16.

    `auto` is bf16 where the device has matrix instructions for it (a GPU from Ampere on, a CPU with
    AMX or AVX-512's bfloat16); elsewhere emulation would be slower than float32. Raises SettingsError for another word.
    """
    if precision not in ("auto", "bf16", "float32"):
        raise SettingsError(f"machine.precision: {precision!r}; use auto, bf16 or float32")
    return precision == "bf16" or (precision == "auto" and _has_bf16(device))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to `device`; the host does not wait for it."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()  # from other memory the copy would wait
    return tensor.to(device, non_blocking=True)


def gigabytes(device: torch.device) -> float:
    """Return the most GB of GPU memory that this process has used so far; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
