"""CLIP: unit-norm embeddings of images and texts, by any open_clip model."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache, reduce
from typing import Any

import numpy as np
import torch
from PIL import Image

from curation.base import files, gpus, images
from curation.base.configuration import did_you_mean
from curation.base.devices import choose_precision, find_device, has_fast_bf16, to_device, to_host
from curation.base.downloads import require_weights
from curation.base.embeddings import normalise
from curation.base.errors import CocuError, loading_error, quoted
from curation.base.lookahead import look_ahead
from curation.base.terminal import print_error
from curation.config import EncoderConfig
from curation.decoding import Decoded, Decoder, Normalisation, decoding_pool, split
from curation.samples import Reject, Sample

WAITING_BYTES = 256 << 20  # of images that wait to be decoded, unless one alone is larger
INSTEAD = "name weights that are here: encoder.pretrained: FILE, or encoder.model: local-dir:FOLDER"
Batch = tuple[list[Sample], np.ndarray]  # samples, and their pixels (B, ...) or embeddings (B, D)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_loading = threading.Lock()


def resolve(config: EncoderConfig) -> tuple[str, str]:
    """The (device, precision) that ``config`` means on this machine."""
    device = find_device(config.device, "encoder.device")
    return device, choose_precision(config.precision, device, has_fast_bf16(device))


def identity(config: EncoderConfig) -> dict[str, Any]:
    """What decides the embeddings: model, weights, and how images are decoded. Local weights are hashed, hub tags named.

    Empty where no encoder is named. Raises CocuError when the folder of a ``local-dir:`` model is missing.
    """
    if not config.is_named:
        return {}
    record: dict[str, Any] = {"model": config.model, "pretrained": config.pretrained, "precision": config.precision}
    record["decoding"] = images.VERSION
    if config.model.startswith("local-dir:"):
        folder = config.model.removeprefix("local-dir:")
        if not os.path.isdir(folder):
            raise CocuError(f"encoder.model: {folder} is not a folder; put the model there, or correct the path")
        record["model"] = "local-dir:" + os.path.basename(folder)
        record["files"] = {name: _digest(os.path.join(folder, name)) for name in files.files_in(folder)}
    elif config.pretrained and os.path.isfile(config.pretrained):
        record["pretrained"] = _digest(config.pretrained)
    return record


def _digest(path: str) -> str:
    return _digest_of_version(path, str(files.version(path)))


@lru_cache(maxsize=64)
def _digest_of_version(path: str, version: str) -> str:
    return files.file_digest(path)


class Encoder:
    """A loaded open_clip model. Use :func:`load`, which keeps one per process."""

    side = 224  # pixels of the model's input: images are not decoded larger than this needs
    decoders = 0  # processes that decode for this one; without any, threads do
    _most: int | None = None  # rows in one forward pass, where memory was too small for a batch

    def __init__(self, config: EncoderConfig, device: str, precision: str) -> None:
        """Load the model. Raises CocuError when there is no such model or no weights for it."""
        self.device = device
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.batch_size = config.batch_size
        self.decoders = config.decoders
        self.model, self.preprocess, self.tokenizer = _load_open_clip(config, device, precision)
        self.side = _input_side(self.model)
        self.width = self.encode_texts(["a photo"]).shape[1]  # D, the length of an embedding

    @cached_property
    def weights(self) -> str:
        """A hash of the loaded weights, to tell whether a named checkpoint is still the same one."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(to_host(value.contiguous().reshape(-1).view(torch.uint8)).data)
        return digest.hexdigest()

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> np.ndarray:
        """Unit-norm embeddings (B, D), float32, of preprocessed images (B, 3, H, W), or of bytes (B, H, W, 3) before the
        normalisation."""
        return self._in_parts(lambda part: self.model.encode_image(self._input(part)), images)

    @torch.inference_mode()
    def encode_ids(self, ids: torch.Tensor) -> np.ndarray:
        """Unit-norm embeddings (T, D), float32, of token ids (T, context) as the model's own tokenizer makes them."""
        return self._in_parts(self.model.encode_text, ids)

    def _in_parts(self, encode: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> np.ndarray:
        """Unit-norm features of rows (B, ...), all at once, or in parts where the GPU's memory is too small for that.

        Raises CocuError where it is too small for one.
        """
        done: list[np.ndarray] = []
        start = 0
        while start < len(rows) or not done:
            part = rows[start : start + (self._most or len(rows))]
            embedded = self._tried(encode, part)
            if embedded is None:
                self._halve(len(part))
            else:
                done.append(embedded)
                start += len(part)
        return done[0] if len(done) == 1 else np.concatenate(done)

    def _tried(self, encode: Callable[[torch.Tensor], torch.Tensor], part: torch.Tensor) -> np.ndarray | None:
        """Unit-norm features of a part of a batch, or None where they need more memory than the GPU has."""
        try:
            return _unit(encode(to_device(part, self.device)))
        except torch.cuda.OutOfMemoryError:
            return None

    def _halve(self, rows: int) -> None:
        """From now on, encode half as many rows at once, since so many did not fit."""
        torch.cuda.empty_cache()
        if rows == 1:
            raise CocuError(
                f"encoder.device: the memory of {self.device} is too small for a single image; name another"
            )
        if self._most is None:
            print_error(
                f"encoder.batch_size: {rows} need more memory than {self.device} has; continuing with fewer at once",
                "note",
            )
        self._most = rows // 2

    def encode_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Unit-norm embeddings (N, D), float32, of texts, in batches of ``batch_size``."""
        texts = list(texts)
        if not texts:
            return np.zeros((0, self.width), np.float32)
        batches = (texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size))
        return np.concatenate([self.encode_ids(self.tokenizer(batch)) for batch in batches])

    def encode_samples(self, samples: Iterable[Sample | Reject]) -> Iterator[Batch | Reject]:
        """Embed a stream of samples: yields batches (samples, (B, D) float32) in order, and rejects among them.

        Images are decoded while the model computes, in threads or in ``decoders`` processes; at most two batches wait in
        memory, and no more bytes than WAITING_BYTES. A GPU works on a batch while the next one is gathered. The samples
        that are yielded have no image any more.
        """
        with decoding_pool(self.decoders) as pool, ThreadPoolExecutor(1) as beside:
            ready = look_ahead(pool, self._decoder, samples, 2 * self.batch_size, _image_bytes, WAITING_BYTES)
            batches = gathered(ready, self.batch_size)
            # A CPU would only be shared by the two.
            yield from (
                map(self._encode, batches) if self.device == "cpu" else look_ahead(beside, self._encode, batches, 2)
            )

    @cached_property
    def _preprocessing(self) -> tuple[Callable[[Image.Image], Any], Normalisation | None]:
        return split(self.preprocess)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._preprocessing[0], self.side)

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        """What the model takes (B, 3, H, W), from the same or from bytes (B, H, W, 3), on its device."""
        normalise_pixels = self._preprocessing[1] if images.dtype == torch.uint8 else None
        return (normalise_pixels(images) if normalise_pixels else images).to(self.dtype)

    def _encode(self, batch: Batch | Reject) -> Batch | Reject:
        if isinstance(batch, Reject):
            return batch
        samples, pixels = batch
        return samples, self.encode_images(torch.from_numpy(pixels))


def gathered(decoded: Iterable[Decoded | Reject], size: int) -> Iterator[Batch | Reject]:
    """Batches of ``size`` with their pixels, the last one smaller, and the rejects as they come."""
    samples: list[Sample] = []
    for item in decoded:
        if isinstance(item, Reject):
            yield item
            continue
        sample, image = item
        if not samples:
            pixels = np.empty((size, *image.shape), image.dtype)
        pixels[len(samples)] = image  # at once: the thread that encodes would wait for the copies
        samples.append(sample)
        if len(samples) == size:
            yield samples, pixels
            samples = []
    if samples:
        yield samples, pixels[: len(samples)]


def _image_bytes(sample: Sample | Reject) -> int:
    return len(sample.image) if isinstance(sample, Sample) else 0


def _input_side(model: Any) -> int:
    """The shorter side of a model's input, in pixels."""
    size = model.visual.image_size
    return min(size) if isinstance(size, (tuple, list)) else int(size)


def check(config: EncoderConfig) -> None:
    """Raises CocuError for what :func:`load` would come to refuse, without loading weights."""
    resolve(config)
    identity(config)
    if ":" not in config.model:
        _check_named(config.model, config.pretrained)


def _check_named(model: str, pretrained: str | None) -> None:
    """Raises CocuError for a name that open_clip does not know, and for weights that it does not have."""
    import open_clip  # takes seconds, and most processes of a run that resumes never need it

    name = model.replace("/", "-")
    tags = open_clip.list_pretrained_tags_by_model(name)
    remedy = f"give one of {', '.join(tags)}" if tags else "open_clip has no weights for a model of that name"
    if not pretrained:
        raise CocuError(f"encoder.pretrained: missing for {model}; {remedy}")
    if name not in open_clip.list_models():
        known = did_you_mean(name, open_clip.list_models())
        raise CocuError(f"encoder.model: open_clip knows no {quoted(model)}{known}")
    if not os.path.isfile(pretrained) and not open_clip.get_pretrained_cfg(name, pretrained):
        raise CocuError(f"encoder.pretrained: {quoted(pretrained)} is neither a file nor weights of {model}; {remedy}")


def _load_open_clip(
    config: EncoderConfig, device: str, precision: str
) -> tuple[Any, Callable[[Image.Image], torch.Tensor], Callable[[list[str]], torch.Tensor]]:
    """The model in evaluation mode, its preprocessing of an image, and its tokenizer."""
    import open_clip  # takes seconds, and most processes of a run that resumes never need it

    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))  # open_clip logs to the root
    if ":" not in config.model:
        _check_named(config.model, config.pretrained)
    require_weights("encoder", config.model, config.pretrained, INSTEAD)
    pretrained = open_clip.get_pretrained_cfg(config.model, config.pretrained or "")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            config.model,
            pretrained=config.pretrained,
            precision=precision,
            device=device,
            # Weights that were trained with QuickGELU (OpenAI's) work badly, and silently so, without it.
            force_quick_gelu=bool(pretrained.get("quick_gelu")),
        )
        tokenizer = open_clip.get_tokenizer(config.model)
    except Exception as error:  # a damaged or foreign checkpoint makes the loaders raise nearly anything
        raise CocuError(
            f"encoder.model: {config.model} (pretrained {config.pretrained}) cannot be loaded: {loading_error(error)}; "
            f"if they were cut off, delete the weights and load them again, or {INSTEAD}"
        ) from error
    return model.eval(), preprocess, tokenizer


def _unit(features: torch.Tensor) -> np.ndarray:
    return to_host(torch.nn.functional.normalize(features.float(), dim=-1))


def load(config: EncoderConfig) -> Encoder:
    """The encoder of ``config``, loaded on first use and kept for the life of the process, or until its files change.

    On a machine with several GPUs, worker processes share them out unless ``device`` names one.
    """
    if config.device in ("auto", "cuda"):
        gpus.take_instance()
    device, precision = resolve(config)
    device = gpus.own_device(device)
    weights = identity(config)
    with _loading:
        encoder = _load(replace(config, device="auto", precision="auto"), device, precision, files.digest(weights))
    if identity(config) != weights:
        raise CocuError(f"encoder.model: the files of {config.model} changed while they were read; run again")
    return encoder


@lru_cache(maxsize=1)
def _load(config: EncoderConfig, device: str, precision: str, weights: str) -> Encoder:
    """``weights`` tells apart what local files held when they were read."""
    return Encoder(config, device, precision)


def encode_concepts(
    encode: Callable[[Iterable[str]], np.ndarray], concepts: list[str], prompts: list[str]
) -> np.ndarray:
    """Text embeddings t_c (V, D) of concepts: normalise(mean over prompts of g(prompt(c))).

    ``encode`` maps texts to unit-norm rows, as :meth:`Encoder.encode_texts` does.

    >>> def encode(texts):
    ...     return np.array([[1.0, 0.0] if text.startswith("a photo") else [0.0, 1.0] for text in texts])
    >>> encode_concepts(encode, ["dog"], ["a photo of a {c}.", "{c}"])
    array([[0.70710677, 0.70710677]], dtype=float32)
    """
    by_prompt = (encode(prompt.replace("{c}", concept) for concept in concepts) for prompt in prompts)
    return normalise(reduce(np.add, by_prompt))  # a sum has the direction of the mean
