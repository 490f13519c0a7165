"""The device to compute on."""

from __future__ import annotations

import re

from evaluation.errors import EvaluationError


def choose_device(requested: str, gpus: int) -> str:
    """The torch device that ``requested`` (auto, cpu, cuda, cuda:N) means on a machine with this many GPUs.

    Raises EvaluationError for another name, and when a GPU is asked for that is not there.
    """
    if requested == "auto":
        return "cuda" if gpus else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", requested):
        raise EvaluationError(f"device: {requested!r} is not auto, cpu, cuda or cuda:N")
    if requested.startswith("cuda") and int(requested.partition(":")[2] or 0) >= gpus:
        raise EvaluationError(
            f"device: {requested} was asked for, but torch sees {gpus} GPUs; "
            "install the drivers and a CUDA build of torch, or use auto or cpu"
        )
    return requested
