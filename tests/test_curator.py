"""From anchors to archives with what a run opens: whose neighbours an anchor has, and which seed its clusters."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from curation.base.embeddings import normalise
from curation.base.ragged import Ragged
from curation.clustering import cluster_archives
from curation.config import from_mapping
from curation.run.curator import Curator

CAPTIONS = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])  # of the index, unit rows


class ExactIndex:
    """Every vector compared, as an index that is searched."""

    def search(self, queries: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        cosines = queries @ CAPTIONS.T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :size]
        return np.take_along_axis(cosines, order, 1), order


def curator(retrieval: dict, archive: dict, texts: np.ndarray | None = None) -> Curator:
    config = from_mapping({"name": "a", "shards": "a.tar", "retrieval": retrieval, "archive": archive})
    return Curator(config, SimpleNamespace(embeddings=texts), None, None, ExactIndex())


@pytest.mark.parametrize(
    ("expansion", "include_anchor", "rows"),
    [
        ("text", True, [1, 0]),  # an own caption has to earn its place: here that of row 3 does not
        ("text", False, [1, 0]),
        ("vision", True, [3, 1]),  # an own image is the first, however far
        ("vision", False, [1, 0]),
    ],
)
def test_an_anchor_and_its_own_row(expansion, include_anchor, rows):
    image = np.array([[0.8, 0.6]])  # cosines 0.8, 0.96, 0.6, -0.28; its caption is row 3
    found = curator({"neighbors": 2, "include_anchor": include_anchor}, {"expansion": expansion})
    assert found.neighbours(image, np.array([3]))[0].tolist() == [rows]


@pytest.mark.parametrize(("include_anchor", "rows"), [(True, [1, 0]), (False, [0, 2])])
def test_text_expansion_without_the_anchor_leaves_out_its_own_caption_where_it_is_the_nearest(include_anchor, rows):
    found = curator({"neighbors": 2, "include_anchor": include_anchor}, {"expansion": "text"})
    assert found.neighbours(np.array([[0.8, 0.6]]), np.array([1]))[0].tolist() == [rows]


def test_the_seed_of_the_configuration_decides_the_clusters():
    rng = np.random.default_rng(0)
    images, texts = (normalise(rng.normal(size=(count, 6))) for count in (30, 25))
    found = []
    for seed in (0, 1, 2):
        archives = curator({"neighbors": 9}, {"expansion": "tagging", "seed": seed}, texts).curate(
            images, np.full(30, -1), Ragged.from_lists([[]] * 30, np.int32)
        )
        assert archives.concepts.lengths.tolist() == [9] * 30
        assert archives.cluster.tolist() == cluster_archives(archives.concepts, texts, seed).tolist()
        found.append(archives.cluster.tolist())
    assert found[0] != found[1] != found[2] != found[0]
