"""A map of the images: their embeddings in two dimensions, by principal components or UMAP."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.archive import read_archive
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.markup import text
from curation.base.parquet import read_columns
from curation.run.run import Run
from curation.samples import Shard

POINTS = 2000
COLOURED = 8  # concepts; the others are grey
METHODS = ("pca", "umap")
WIDE, HIGH = 1000, 560


@dataclass(frozen=True)
class EmbeddingMap:
    """N images."""

    method: str
    points: np.ndarray  # (N, 2) float32 in 0..1
    concepts: list[str]  # the best of each archive; empty for an empty one
    captions: list[str]


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) along the two directions in which they differ most: (N, 2). The largest weight of each is positive."""
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = directions[:2]
    signs = np.sign(plane[np.arange(len(plane)), np.abs(plane).argmax(1)])
    return np.asarray(centred @ (plane * signs[:, None]).T)


def _umap(vectors: np.ndarray) -> np.ndarray:
    """UMAP by cosine. Raises CocuError where umap-learn is not installed."""
    try:
        umap = importlib.import_module("umap")
    except ModuleNotFoundError:
        raise CocuError("map: umap-learn is not installed; run pip install umap-learn, or use --map pca") from None
    return np.asarray(umap.UMAP(metric="cosine", random_state=0).fit_transform(vectors))


def draw_map(run: Run, shards: list[Shard], method: str, rng: np.random.Generator) -> EmbeddingMap | None:
    """A map of some random images of these shards; None where there are fewer than three."""
    vectors, concepts, captions = [], [], []
    for shard in shards:
        column = read_columns(run.of_shard("embeddings", shard), {"embedding": None})["embedding"]
        rows = np.sort(rng.permutation(len(column))[: -(-POINTS // len(shards))])
        vectors.append(embedding_matrix(column.take(pa.array(rows))))
        for row in read_archive(run.of_shard("archives", shard)).take(pa.array(rows)).to_pylist():
            concepts.append(row["concepts"][0]["concept"] if row["concepts"] else "")
            captions.append(row["caption"])
    if len(captions) < 3:
        return None

    every = np.concatenate(vectors).astype(np.float32)
    points = principal_components(every) if method == "pca" else _umap(every)
    spread = np.maximum(np.ptp(points, axis=0), 1e-9)
    return EmbeddingMap(method, ((points - points.min(0)) / spread).astype(np.float32), concepts, captions)


def map_section(drawn: EmbeddingMap | None) -> str:
    """The section of the page; empty where no map was asked for."""
    if drawn is None:
        return ""
    names, counts = np.unique([name for name in drawn.concepts if name], return_counts=True)
    coloured = {str(names[at]): number for number, at in enumerate(np.argsort(-counts, kind="stable")[:COLOURED])}
    points = "".join(
        map(_point, drawn.points.tolist(), drawn.concepts, drawn.captions, map(coloured.get, drawn.concepts))
    )
    legend = "".join(
        f'<span><i class="swatch c{number}"></i>{text(name, 60)}</span>' for name, number in coloured.items()
    )
    count = len(drawn.captions)
    how = "Principal components" if drawn.method == "pca" else "UMAP"
    return f"""<section aria-labelledby="map">
<h2 id="map">Map</h2>
<p>{how} of the embeddings of {count:,} images: what lies together looks alike to the encoder. The colour is the best
concept of an archive, the most frequent ones only.</p>
<figure class="histogram"><figcaption>{legend}</figcaption>
<svg class="map" viewBox="-8 -8 {WIDE + 16} {HIGH + 16}" role="img" aria-label="Map of {count:,} images">
{points}</svg></figure>
</section>
"""


def _point(point: list[float], concept: str, caption: str, colour: int | None) -> str:
    kind = "" if colour is None else f' class="c{colour}"'
    return (
        f'<circle{kind} cx="{WIDE * point[0]:.0f}" cy="{HIGH * (1 - point[1]):.0f}" r="4">'
        f"<title>{text(concept or 'no concept', 60)}: {text(caption, 80)}</title></circle>"
    )
