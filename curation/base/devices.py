"""Which device and which precision to compute with: pure choices, and the probes of this machine that they need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from curation.base.errors import CocuError, quoted

if TYPE_CHECKING:  # it takes a second to import, and whoever asks for --help never needs it
    import torch
    from torch import Tensor

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def check_device_name(key: str, value: str) -> None:
    """Raises CocuError naming ``key`` unless ``value`` is auto, cpu, cuda or cuda:N."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is None:
        raise CocuError(f"{key}: {quoted(value)} is not auto, cpu, cuda or cuda:N")


def choose_device(requested: str, gpus: int, key: str = "device") -> str:
    """The torch device that ``requested`` (auto, cpu, cuda, cuda:N) means on a machine with so many GPUs.

    ``key`` names the setting in errors. Raises CocuError for another name, and for a GPU that is not there.

        >>> choose_device("auto", 0), choose_device("auto", 2), choose_device("cuda:1", 2)
        ('cpu', 'cuda', 'cuda:1')
    """
    check_device_name(key, requested)
    if requested == "auto":
        return "cuda" if gpus else "cpu"
    if requested.startswith("cuda") and int(requested.partition(":")[2] or 0) >= gpus:
        raise CocuError(
            f"{key}: {requested} was asked for, but torch sees {gpus} GPUs; "
            f"install the drivers and a CUDA build of torch, or set {key} to auto or cpu"
        )
    return requested


def find_device(requested: str, key: str = "device") -> str:
    """The torch device that ``requested`` means on this machine; see :func:`choose_device`."""
    import torch

    return choose_device(requested, torch.cuda.device_count(), key)


def choose_precision(requested: str, device: str, fast_bf16: bool) -> str:
    """The arithmetic to compute in; ``fast_bf16``: the device multiplies bf16 matrices in hardware.

    Raises CocuError for fp16 on a CPU, which has no fast path and loses accuracy there.
    """
    if requested == "auto":
        return "bf16" if fast_bf16 else ("fp16" if device.startswith("cuda") else "fp32")
    if requested == "fp16" and device == "cpu":
        raise CocuError("encoder.precision: fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    return requested


def has_fast_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 in hardware (Ampere or newer; AVX512-BF16 or AMX).

    ``cuda`` is any GPU: all that are visible must, so that the processes of a machine with different ones agree.
    """
    import torch

    if device.startswith("cuda"):
        number = device.partition(":")[2]
        gpus = [int(number)] if number else range(torch.cuda.device_count())
        return bool(torch.version.hip) or all(torch.cuda.get_device_capability(gpu)[0] >= 8 for gpu in gpus)
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe is not None)


# --- between main memory and the device -----------------------------------------------------------------------------------


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on ``device``. For a GPU it is copied through pinned memory, so that the host does not wait for it."""
    import torch

    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> np.ndarray:
    """The values of a tensor, in main memory. The one place where results leave a device: the host waits for them."""
    values: np.ndarray = tensor.detach().cpu().numpy()
    return values
