"""Text embeddings of a run: the encoder's, or given ones; and what a run needs where it names no encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from curation import encoder
from curation.base import files
from curation.base.embeddings import has_direction, normalise
from curation.base.errors import CocuError, InputError, listed, one_line
from curation.base.parquet import read_metadata
from curation.config import CurationConfig
from curation.expansion import EXPANSIONS
from curation.run.captions import block_captions
from curation.run.run import Run, encoder_of, relative_paths, tar_of
from curation.samples import Shard, read_import
from curation.wordlists import read_concepts, read_embeddings

# --- of concepts --------------------------------------------------------------------------------------------------------


def embed_concepts(config: CurationConfig, names: list[str]) -> tuple[list[str], np.ndarray]:
    """The concepts that have a text embedding, and their embeddings t_c (V, D), float32, unit rows.

    All of them have one where the encoder makes them. Of given embeddings, a vocabulary that is built leaves out the nouns
    that have none; raises CocuError where that leaves nothing, and where a concept of a file has none.
    """
    path = config.concept_embeddings
    if path is None:
        model = encoder.load(config.encoder)
        return names, encoder.encode_concepts(model.encode_texts, names, config.vocabulary.prompts)

    given = read_embeddings(path)
    rows = given.find(names)
    missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
    if missing and not config.vocabulary.built:
        raise CocuError(
            f"{path}: has no embedding of {listed(missing, 5)}; add them, or take them out of the vocabulary"
        )
    if len(missing) == len(names):
        raise CocuError(f"{path}: has no embedding of any noun of the captions, such as {listed(missing, 5)}")
    return [name for name, row in zip(names, rows, strict=True) if row >= 0], given.embeddings[rows[rows >= 0]]


def concept_parameters(config: CurationConfig) -> dict[str, Any]:
    """What decides the text embeddings of concepts, for the record of what is computed from them."""
    if config.concept_embeddings:
        return {"embeddings": files.file_digest(config.concept_embeddings)}
    return {"prompts": config.vocabulary.prompts, "encoder": encoder.identity(config.encoder)}


def check_width(config: CurationConfig, width: int, where: str) -> None:
    """Raises CocuError, naming ``where``, when image embeddings have another width than given ones of concepts."""
    path = config.concept_embeddings
    expected = read_embeddings(path).width if path else width
    if width != expected:
        raise CocuError(
            f"{where}: image embeddings have {width} dimensions, but the text embeddings of {path} have {expected}; "
            "give those of the same model"
        )


# --- of captions --------------------------------------------------------------------------------------------------------


def caption_part(run: Run, shard: Shard) -> str:
    """The ``text_emb/text_emb_N.npy`` of a clip-retrieval folder that belongs to a part of it.

    Raises InputError for an address that must not be opened unasked.
    """
    folder, _, name = tar_of(run, shard).rpartition("/img_emb/")
    return f"{folder}/text_emb/{name.replace('img_emb_', 'text_emb_')}"


def caption_parts(run: Run) -> list[str]:
    """The embeddings of captions that a run reads: of text-driven expansion over an import without an encoder.

    Raises CocuError where one is missing.
    """
    if EXPANSIONS[run.config.archive.expansion].retrieves != "text" or not gives_captions(run.config):
        return []
    if run.config.captions:
        raise CocuError(
            "archive.expansion: text needs embeddings of all captions, and text_emb has those of one; name the encoder, or "
            "leave out captions"
        )
    paths = [caption_part(run, shard) for shard in run.shards]
    absent = next((path for path in paths if not files.exists(path)), None)
    if absent:
        raise CocuError(
            f"archive.expansion: text needs embeddings of captions; {absent} is missing, and no encoder is named"
        )
    return paths


def embed_captions(run: Run, shard: Shard, block: pa.RecordBatch | pa.Table) -> np.ndarray:
    """Embeddings (B, D), unit rows, of the captions of rows of an embeddings file: the encoder's, or those of an import.

    An image with several captions has one embedding, the direction of their mean, because the index has a row an image.
    Raises InputError for an address, or weights on a hub, that must not be opened unasked.
    """
    if gives_captions(run.config):
        return given_captions(run, shard, block["key"].to_pylist())
    captions = block_captions(block, run.config)
    embeddings = encoder.load(encoder_of(run)).encode_texts(captions.texts)
    if captions.sources is None:
        return embeddings
    starts = np.cumsum(captions.lengths) - captions.lengths
    sums = np.add.reduceat(embeddings.astype(np.float64), starts) if len(starts) else embeddings
    return normalise(sums.astype(np.float32))


def given_captions(run: Run, shard: Shard, keys: list[str]) -> np.ndarray:
    """Embeddings (N, D), unit rows, of the captions of an imported part, for the rows with these keys.

    Raises InputError when the file is missing or damaged, does not fit the part, or has a vector without direction.
    """
    path = caption_part(run, shard)
    known, _, images = read_import(shard.path)
    try:
        with files.open_file(path) as stream:
            matrix = np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from None
    if matrix.shape != images.shape:
        raise InputError(f"{path}: shape {matrix.shape} does not fit {images.shape} of {shard.path}")

    first: dict[str, int] = {}  # a later row of the same key was rejected
    for row, key in enumerate(known):
        first.setdefault(str(key), row)
    chosen = np.asarray(matrix[[first[key] for key in keys]], np.float32)
    if not has_direction(chosen).all():
        raise InputError(f"{path}: an embedding is zero or not finite")
    return normalise(chosen)


def gives_captions(config: CurationConfig) -> bool:
    """Whether embeddings of captions are those of the imported folder."""
    return bool(config.embeddings) and not config.encoder.is_named


# --- what a run needs, and where it came from ---------------------------------------------------------------------------


def check_texts(run: Run) -> None:
    """Raises CocuError, in one line, for what needs an encoder where none is named, and for an encoder that cannot be."""
    config = run.config
    if config.encoder.is_named or not config.embeddings:
        encoder.check(config.encoder)
    elif config.concept_embeddings is None:
        raise CocuError(
            f"vocabulary.source: {config.vocabulary.source} has no text embeddings, and no encoder is named; give a "
            "parquet with columns concept and embedding as vocabulary.embeddings, or name the model that made the images' "
            "in encoder"
        )
    caption_parts(run)
    if config.concept_embeddings and not config.vocabulary.built:
        embed_concepts(config, read_concepts(config.vocabulary.source))
    if config.embeddings and run.shards:
        check_width(config, read_import(run.shards[0].path, config.captions)[2].shape[1], run.shards[0].path)


def provenance(run: Run) -> dict[str, Any]:
    """Where the embeddings of a run came from, for the manifest."""
    config = run.config
    ours: dict[str, Any] = {"from": "encoder", **encoder.identity(config.encoder)}
    images, concepts = ours, ours
    if config.embeddings:
        images = {"from": "import", "path": relative_paths([config.embeddings], run.folder)[0]}
        images |= (
            {"model": config.encoder.model, "pretrained": config.encoder.pretrained} if config.encoder.is_named else {}
        )
    path = config.concept_embeddings
    if path:
        given = read_embeddings(path)
        concepts = {"from": "file", "path": relative_paths([path], run.folder)[0], "hash": files.file_digest(path)}
        concepts |= {"concepts": len(given.rows), "width": given.width}
        made = read_metadata(path).get("vocabulary")
        if isinstance(made, dict) and isinstance(made.get("embedded by"), dict):
            concepts["embedded by"] = made["embedded by"]  # what another run says of them
    return {"images": images, "concepts": concepts}
