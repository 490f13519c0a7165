"""What the encoder behind the archives says of every place, untrained: the row that each trained arm must beat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from curation.base import files
from curation.base.errors import CocuError
from curation.config import EncoderConfig
from curation.run.run import open_run
from evaluation.benchmark import Benchmark
from evaluation.evaluate import evaluate
from experiments.arms import BASE
from experiments.runs import Setting, archives_digest, benchmark_digest
from segmenters.opening import open_segmenter
from segmenters.pretrained import FOLDER, NAMED

FILE = "untrained.json"  # beside the runs, so that the page can be written without measuring again


@dataclass(frozen=True)
class Reading:
    """The scores of one way to read the encoder, in percent."""

    name: str  # as evaluation takes it, without where its files are: local-dir:clip@stride=16
    pixel_accuracy: float
    iou: np.ndarray  # (C,), nan for classes that do not occur

    @property
    def miou(self) -> float:
        """Over the classes that occur."""
        return float(np.nanmean(self.iou))


def measure(settings: Sequence[Setting], benchmark: Benchmark, folder: Path, console: Console) -> list[Reading]:
    """Read the encoder at its own stride and at that of each recipe, on the images that the runs are scored on; what was
    measured before is kept. Empty where no encoder is named, or it has no places to read, which is said."""
    encoder = open_run(str(settings[0].archives / BASE)).config.encoder
    if not encoder.is_named:
        return []

    request = {"encoder": encoder_name(encoder), "strides": strides(settings), "limit": settings[0].limit}
    request["benchmark"] = benchmark_digest(settings[0].benchmark, settings[0].data_root)
    request["content"] = archives_digest(settings[0].archives / BASE)
    path = folder / FILE
    if path.exists() and files.read_json(str(path))["asked"] == request:
        return read(folder)
    readings = []
    for name in _names(encoder, strides(settings)):
        try:
            readings.append(_evaluate(name, benchmark, settings[0].limit))
        except CocuError as error:  # not every encoder has every stride
            console.print(f"{name} is not read untrained: {error}")
    if not readings:
        return []

    content = [vars(reading) | {"iou": [_number(value) for value in reading.iou.tolist()]} for reading in readings]
    files.write_json(str(path), {"asked": request, "readings": content})
    return readings


def read(folder: Path) -> list[Reading]:
    """What was measured; empty where nothing was."""
    path = folder / FILE
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))["readings"]
    return [Reading(**(values | {"iou": np.array(values["iou"], float)})) for values in content]


def best(readings: Sequence[Reading]) -> Reading | None:
    """The reading with the highest mIoU; None without any."""
    return max(readings, key=lambda reading: reading.miou, default=None)


def encoder_name(encoder: EncoderConfig) -> str:
    """An encoder of curation as evaluation names it.

    >>> encoder_name(EncoderConfig(model="ViT-B-32", pretrained="openai"))
    'open_clip:ViT-B-32/openai'
    """
    return encoder.model if encoder.model.startswith(FOLDER) else f"{NAMED}{encoder.model}/{encoder.pretrained}"


def strides(settings: Sequence[Setting]) -> list[int]:
    """The strides that recipes read their encoders at, each once."""
    named = [setting.recipe.settings().get("model", {}).get("stride") for setting in settings]
    return sorted({stride for stride in named if stride})


def _names(encoder: EncoderConfig, wanted: Sequence[int]) -> list[str]:
    name = encoder_name(encoder)
    return [name, *(f"{name}@stride={stride}" for stride in wanted)]


def _number(value: float) -> float | None:
    """As JSON has it, which knows no nan."""
    return None if np.isnan(value) else value


def _evaluate(name: str, benchmark: Benchmark, limit: int | None) -> Reading:
    scores = evaluate(open_segmenter(name).model, benchmark, limit=limit).scores
    shown = FOLDER + Path(name.removeprefix(FOLDER)).name if name.startswith(FOLDER) else name
    return Reading(shown, float(scores.pixel_accuracy), np.array(scores.iou, float))
