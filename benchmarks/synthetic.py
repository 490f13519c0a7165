"""Synthetic image-text data as embeddings: Zipf concepts, clustered vectors, captions that leave most of it unsaid.

An image shows a *head* concept, drawn from a Zipf distribution, and some of the head's companions. Its vector is a mean
that all images share, plus the directions of what it shows, plus noise, both of decaying spectrum: neighbours show the same
things, and inverted lists mean something, as they would not in pure noise. They are harder to find than those of a small
CLIP that was trained on small pictures: an eighth of the lists of 12,000 images has to be probed for a recall of 0.95, not
a thirtieth. A caption names one to three of the concepts.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from curation.base.embeddings import normalise
from curation.concepts import concept_key

DIMENSION = 512
VOCABULARY = 5000
SHOWN = 5  # concepts of an image
COMPANIONS = 30  # concepts that are seen with a head concept
SHARED, CONTENT, NOISE = 0.6, 0.7, 0.35  # lengths of the three parts of an image's vector
DECAY = 16  # dimension at which the spectrum has fallen to half
SHARD = 10_000  # samples of a shard, as in img2dataset's


class Samples(NamedTuple):
    """Some images and what their captions name."""

    vectors: np.ndarray  # (n, D) float32, unit rows
    offsets: np.ndarray  # (n + 1,) int64: CSR of the concepts that captions name
    concepts: np.ndarray  # (P,) int32


def names(count: int) -> list[str]:
    """Invented words, two fifths of them in pairs, that are their own singulars: the concepts."""
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprtvz", "aeiou")]
    words = ("".join(parts) for parts in itertools.product(syllables, syllables, syllables))
    singulars = [word for word in itertools.islice(words, 0, None, 37) if concept_key(word) == (word,)]
    order = np.random.default_rng(0).permutation(len(singulars))
    shuffled = iter(singulars[number] for number in order)
    return [f"{next(shuffled)} {next(shuffled)}" if number % 5 < 2 else next(shuffled) for number in range(count)]


@dataclass(frozen=True)
class SyntheticWorld:
    """What images can show. ``texts`` (V, D): unit rows, the embeddings of the concepts."""

    texts: np.ndarray

    @cached_property
    def _spectrum(self) -> np.ndarray:
        return 1 / (1 + np.arange(self.texts.shape[1], dtype=np.float32) / DECAY)

    @cached_property
    def _directions(self) -> np.ndarray:
        return normalise((self.texts - self.texts.mean(axis=0)) * self._spectrum)  # (V, D)

    @cached_property
    def _shared(self) -> np.ndarray:
        return normalise(np.random.default_rng(1).normal(size=(1, self.texts.shape[1])))

    @cached_property
    def _chances(self) -> np.ndarray:
        weights = 1 / np.arange(1, len(self.texts) + 1)  # Zipf
        return np.cumsum(weights / weights.sum())

    @cached_property
    def _companions(self) -> np.ndarray:
        return self._draw(np.random.default_rng(2), (len(self.texts), COMPANIONS))

    def _draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.minimum(np.searchsorted(self._chances, random.random(shape)), len(self.texts) - 1)

    def samples(self, count: int, seed: int) -> Samples:
        """``count`` random images."""
        random = np.random.default_rng([3, seed])
        shown = np.empty((count, SHOWN), np.int64)
        shown[:, 0] = self._draw(random, (count,))
        shown[:, 1:] = self._companions[shown[:, :1], random.integers(0, COMPANIONS, (count, SHOWN - 1))]

        content = self._directions[shown[:, 0]].copy()  # (n, D)
        for column in range(1, SHOWN):
            content += 0.5 * self._directions[shown[:, column]]
        noise = random.standard_normal(content.shape, np.float32) * self._spectrum
        vectors = normalise(SHARED * self._shared + CONTENT * normalise(content) + NOISE * normalise(noise))

        named = np.minimum(np.arange(SHOWN), random.integers(0, 3, (count, 1)))  # the first one, two or three
        return Samples(vectors, *_distinct(np.take_along_axis(shown, named, axis=1)))


def _distinct(concepts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CSR of the different concepts in each row of (n, K), ascending."""
    ordered = np.sort(concepts, axis=1)
    first = np.concatenate([np.ones((len(ordered), 1), bool), np.diff(ordered, axis=1) > 0], axis=1)
    return np.concatenate([[0], np.cumsum(first.sum(axis=1))]), ordered[first].astype(np.int32)


def random_world(vocabulary: int = VOCABULARY, dimension: int = DIMENSION) -> SyntheticWorld:
    """A world whose concepts have random embeddings with a common part, as CLIP's have."""
    random = np.random.default_rng(4)
    common = normalise(random.normal(size=(1, dimension)))
    return SyntheticWorld(normalise(0.8 * common + 0.6 * normalise(random.normal(size=(vocabulary, dimension)))))


# --- on disk --------------------------------------------------------------------------------------------------------------


def write_clip(folder: Path, dimension: int = DIMENSION) -> Path:
    """Write a very small CLIP with random weights for open_clip's ``local-dir:``, which gives concepts their embeddings."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": dimension,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    weights = {name: value.contiguous() for name, value in open_clip.model.CLIP(**config).state_dict().items()}
    for name in ("token_embedding.weight", "transformer.resblocks.0.attn.out_proj.weight"):
        weights[name] *= 50  # so that different words lie apart

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def write_data_set(folder: Path, rows: int, dimension: int = DIMENSION, vocabulary: int = VOCABULARY) -> Path:
    """Write embeddings as clip-retrieval does, with concepts and a small CLIP; returns the path of their ``data.yaml``."""
    from curation.config import EncoderConfig
    from curation.encoder import encode_concepts, load

    clip = write_clip(folder / "clip", dimension)
    concepts = names(vocabulary)
    (folder / "concepts.txt").write_text("\n".join(concepts) + "\n")
    encode = load(EncoderConfig(model=f"local-dir:{clip}", precision="fp32")).encode_texts
    world = SyntheticWorld(encode_concepts(encode, concepts, ["a photo of a {c}."]))

    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(exist_ok=True)
    shards = max(2, -(-rows // SHARD))
    for number in range(shards):
        first = rows * number // shards
        last = rows * (number + 1) // shards
        samples = world.samples(last - first, number)
        captions = [
            "a picture of " + " and ".join(concepts[concept] for concept in samples.concepts[start:end])
            for start, end in itertools.pairwise(samples.offsets.tolist())
        ]
        table = pa.table({"key": [f"{row:09d}" for row in range(first, last)], "caption": captions})
        np.save(folder / "img_emb" / f"img_emb_{number:04d}.npy", samples.vectors.astype(np.float16))
        pq.write_table(table, folder / "metadata" / f"metadata_{number:04d}.parquet")

    config = {
        "name": f"synthetic-{rows}",
        "embeddings": ".",
        "encoder": {"model": "local-dir:clip", "precision": "fp32"},
        "vocabulary": {"source": "concepts.txt"},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(config))
    return folder / "data.yaml"
