"""CLIP: unit-norm embeddings of images and texts, by any open_clip model."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, reduce
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from curation.base import files
from curation.base.devices import choose_precision, find_device, has_fast_bf16
from curation.base.embeddings import normalise
from curation.base.errors import CocuError
from curation.base.lookahead import look_ahead
from curation.config import EncoderConfig
from curation.samples import Reject, Sample

_loading = threading.Lock()


def resolve(config: EncoderConfig) -> tuple[str, str]:
    """The (device, precision) that ``config`` means on this machine."""
    device = find_device(config.device, "encoder.device")
    return device, choose_precision(config.precision, device, has_fast_bf16(device))


def identity(config: EncoderConfig) -> dict[str, Any]:
    """What decides the embeddings: model, weights and preprocessing. Local weights are hashed, hub tags are named."""
    named: dict[str, Any] = {"model": config.model, "pretrained": config.pretrained, "precision": config.precision}
    if config.model.startswith("local-dir:"):
        folder = config.model.removeprefix("local-dir:")
        if not os.path.isdir(folder):
            raise CocuError(f"encoder.model: {folder} is not a folder")
        named["model"] = "local-dir:" + os.path.basename(folder)
        named["files"] = {
            name: _cached_digest(os.path.join(folder, name), str(files.version(os.path.join(folder, name))))
            for name in files.files_in(folder)
        }
    elif config.pretrained and os.path.isfile(config.pretrained):
        named["pretrained"] = _cached_digest(config.pretrained, str(files.version(config.pretrained)))
    return named


@lru_cache(maxsize=64)
def _cached_digest(path: str, version: str) -> str:
    return files.file_digest(path)


class Encoder:
    """A loaded open_clip model. Use :func:`load`, which keeps one per process."""

    def __init__(self, config: EncoderConfig, device: str, precision: str) -> None:
        """Load the model. Raises CocuError when there is no such model or no weights for it."""
        import open_clip  # takes seconds, and most processes of a run that goes on never need it

        self.device, self.precision, self.batch_size = device, precision, config.batch_size
        logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))
        if ":" not in config.model and not config.pretrained:
            tags = open_clip.list_pretrained_tags_by_model(config.model)
            known = f"one of {', '.join(tags)}" if tags else f"no model of that name in {len(open_clip.list_models())}"
            raise CocuError(f"encoder.pretrained: missing for {config.model}; {known}")
        tag = open_clip.get_pretrained_cfg(config.model, config.pretrained or "")
        try:
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(
                config.model,
                pretrained=config.pretrained,
                precision=precision,
                device=device,
                # Weights that were trained with QuickGELU (OpenAI's) work badly, and silently so, without it.
                force_quick_gelu=bool(tag.get("quick_gelu")),
            )
            self.tokenizer = open_clip.get_tokenizer(config.model)
        except Exception as error:  # a damaged or foreign checkpoint makes the loaders raise nearly anything
            raise CocuError(
                f"encoder.model: {config.model} (pretrained {config.pretrained}) cannot be loaded: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        self.model.eval()
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.width = self.encode_texts(["a photo"]).shape[1]  # D, the length of an embedding

    @cached_property
    def weights(self) -> str:
        """A hash of the loaded weights, to tell whether a named checkpoint is still the same one."""
        found = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            found.update(name.encode())
            found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> np.ndarray:
        """Unit-norm embeddings (B, D), float32, of preprocessed images (B, 3, H, W)."""
        images = images.to(self.device, self.dtype, non_blocking=True)
        return _unit(self.model.encode_image(images))

    @torch.inference_mode()
    def encode_ids(self, ids: torch.Tensor) -> np.ndarray:
        """Unit-norm embeddings (T, D), float32, of token ids (T, context) as the model's own tokenizer makes them."""
        return _unit(self.model.encode_text(ids.to(self.device)))

    def encode_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Unit-norm embeddings (N, D), float32, of texts, in batches of ``batch_size``."""
        texts = list(texts)
        batches = [
            self.encode_ids(self.tokenizer(texts[start : start + self.batch_size]))
            for start in range(0, len(texts), self.batch_size)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, self.width), np.float32)

    def encode_samples(
        self, samples: Iterable[Sample | Reject], decoders: int = 2
    ) -> Iterator[tuple[list[Sample], np.ndarray] | Reject]:
        """Embed a stream of samples: yields batches (samples, (B, D) float32) in order, and rejects as they are found.

        Images are decoded in ``decoders`` threads while the model computes; at most two batches wait in memory.
        """
        ready: list[tuple[Sample, torch.Tensor]] = []
        with ThreadPoolExecutor(decoders) as pool:
            for decoded in look_ahead(pool, self._decode, samples, 2 * self.batch_size):
                if isinstance(decoded, Reject):
                    yield decoded
                    continue
                ready.append(decoded)
                if len(ready) == self.batch_size:
                    yield self._encode_batch(ready)
                    ready = []
        if ready:
            yield self._encode_batch(ready)

    def _decode(self, sample: Sample | Reject) -> tuple[Sample, torch.Tensor] | Reject:
        if isinstance(sample, Reject):
            return sample
        try:
            with Image.open(io.BytesIO(sample.image)) as image:
                pixels: torch.Tensor = self.preprocess(image.convert("RGB"))
                return sample, pixels
        except UnidentifiedImageError:  # its message holds an address in memory
            return Reject(sample.key, "image cannot be decoded (not an image format that Pillow knows)")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return Reject(sample.key, f"image cannot be decoded ({' '.join(str(error).split())[:200]})")

    def _encode_batch(self, ready: list[tuple[Sample, torch.Tensor]]) -> tuple[list[Sample], np.ndarray]:
        return [sample for sample, _ in ready], self.encode_images(torch.stack([image for _, image in ready]))


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def load(config: EncoderConfig) -> Encoder:
    """The encoder of ``config``, loaded on first use and kept for the life of the process.

    On a machine with several GPUs, worker processes take them in turn unless ``device`` names one.
    """
    device, precision = resolve(config)
    if device == "cuda":
        device = f"cuda:{os.getpid() % torch.cuda.device_count()}"
    with _loading:
        return _load(config.model, config.pretrained, config.batch_size, device, precision)


@lru_cache(maxsize=1)
def _load(model: str, pretrained: str | None, batch_size: int, device: str, precision: str) -> Encoder:
    return Encoder(EncoderConfig(model=model, pretrained=pretrained, batch_size=batch_size), device, precision)


def encode_concepts(
    encode: Callable[[Iterable[str]], np.ndarray], concepts: list[str], prompts: list[str]
) -> np.ndarray:
    """Text embeddings t_c (V, D) of concepts: normalise(mean over prompts of g(prompt(c))).

    ``encode`` maps texts to unit-norm rows, as :meth:`Encoder.encode_texts` does.
    """
    sums = (encode(prompt.replace("{c}", concept) for concept in concepts) for prompt in prompts)
    return normalise(reduce(np.add, sums))
