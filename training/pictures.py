"""What a model sees, drawn after each validation into the logs: always the same pictures, so that they can be compared."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from curation.archive import NO_ARCHIVE
from curation.base import images
from curation.base.configuration import require
from curation.base.devices import to_host
from curation.base.errors import CocuError
from evaluation.evaluate import Prediction, evaluate
from evaluation.inference import embed_classes, prepare, segment
from evaluation.panels import Panel, side_by_side
from evaluation.pictures import comparison, groups_panel, heat_panel, shown_size
from evaluation.segment import heat, view_for
from segmenters.opening import Segmenter
from training.batches import SHORT
from training.datamodule import ArchiveDataModule
from training.logs import log_picture
from training.stream import Pair, TrainingShard, read_pairs

WORDS = 3  # omitted concepts of a picture, the best first


class OmittedSample(NamedTuple):
    """A picture of the training data, and what its archive holds that its caption omits."""

    key: str
    image: Image.Image
    concepts: list[str]


class ValidationPictures(Callback):
    """Draws the first ``count`` pictures of the benchmark: truth, prediction and groups; and as many of the first curated
    shard: groups, and the heat of the concepts that their captions omit."""

    def __init__(self, data: ArchiveDataModule, count: int) -> None:
        require(count >= 0, f"pictures: {count} must be at least 0")
        self._data = data
        self._count = count
        self._samples: list[OmittedSample] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them on the first process, where a log takes pictures."""
        wanted = self._count and trainer.loggers and trainer.is_global_zero and trainer.state.fn == "fit"
        if not wanted or trainer.sanity_checking:
            return
        if self._samples is None:
            self._samples = list(omitted_samples(self._data.shards, self._count))

        model: Segmenter = pl_module.model  # type: ignore[assignment]  # a module may hold anything
        if model.logit_scale.dtype != torch.float32:  # bf16-true and 64-true
            model = copy.deepcopy(model).float()
        training = model.training
        model.eval()
        for name, picture in draw(model, pl_module.benchmark, self._samples, self._count):
            for logger in trainer.loggers:
                log_picture(logger, name, picture, trainer.global_step)
        model.train(training)


def omitted_samples(shards: Sequence[TrainingShard], count: int) -> Iterator[OmittedSample]:
    """The first ``count`` samples of the first shard with archives that hold what the caption omits; none without one.

    None either where the run's embeddings, which say what captions mention, were not kept.
    """
    shard = next((shard for shard in shards if shard.archive is not None), None)
    if shard is None or shard.archive is None:
        return
    try:
        archives = shard.archive.filter(omitted=True).filter(top=WORDS).read(shard.source.name)
    except CocuError:
        return

    drawn = 0
    for pair in read_pairs(shard, archives.keys, required=False):
        if drawn == count:
            return
        if not isinstance(pair, Pair) or pair.row == NO_ARCHIVE:
            continue
        ids = archives.concepts[archives.offsets[pair.row] : archives.offsets[pair.row + 1]]
        if not len(ids):
            continue
        with contextlib.suppress(images.ImageError):
            picture = images.decode(pair.image, SHORT)
            drawn += 1
            yield OmittedSample(pair.key, picture, [archives.names[number] for number in ids])


def draw(
    model: Segmenter, benchmark: Any, samples: Sequence[OmittedSample], count: int
) -> Iterator[tuple[str, Image.Image]]:
    """Names and pictures; ``benchmark`` may be None."""
    if benchmark is not None:
        predictions: list[Prediction] = []
        with contextlib.suppress(
            CocuError
        ):  # every label of these images is ignored: there is something to see all the same
            evaluate(model, benchmark, limit=count, groups_of=count, on_image=predictions.append)
        for prediction in sorted(predictions, key=lambda prediction: prediction.index):
            yield f"validation/{prediction.name}", comparison(prediction, benchmark)

    for sample in samples:
        yield f"omitted/{sample.key}", omitted_picture(model, sample)


def omitted_picture(model: Segmenter, sample: OmittedSample) -> Image.Image:
    """The picture, its groups, and the heat of each concept on a scale of its own."""
    native = model.config.image_size
    view = view_for(native, native)
    classes = embed_classes(model, sample.concepts, None)
    small = sample.image.resize(shown_size(sample.image.size), Image.Resampling.BICUBIC)
    pixels, size = prepare(sample.image, view, model.smallest)
    ((_, segmentation),) = segment(model, classes, [(None, pixels, size)], view, 16, with_groups=True)

    panels = [Panel(sample.key, small, [])]
    if segmentation.groups is not None:
        panels.append(groups_panel(small, to_host(segmentation.groups)))
    for word, values in zip(sample.concepts, heat(model, classes, sample.image, view), strict=True):
        panels.append(heat_panel(small, values, (float(values.min()), float(values.max())), word))
    return side_by_side(panels, columns=len(panels))
