"""The graph of all neighbours: from either end, whatever is searched together, and as runs make and read it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import archived, curate
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import GROUNDS, write_world

from curation.base.embeddings import normalise
from curation.base.errors import CocuError
from curation.index import choose
from curation.index.graph import from_either_end, graph_type, groups, look_up, read_graph
from curation.index.open import open_index, set_search
from curation.run.held_out import HeldOut
from curation.run.indexes import INDEXES
from curation.run.records import recorded
from curation.run.run import open_run
from curation.run.stages import graph as stages


def edges_from_either_end(ids: np.ndarray, cosines: np.ndarray, size: int) -> list[list[tuple[float, int]]]:
    """The plain formula: all edges of a row, its own and those of others that lead to it."""
    edges: list[dict[int, float]] = [{} for _ in ids]
    for row, (theirs, values) in enumerate(zip(ids.tolist(), cosines.tolist(), strict=True)):
        for other, value in zip(theirs, values, strict=True):
            if other >= 0:
                edges[row][other] = value
                edges[other][row] = value
    return [sorted((-value, other) for other, value in row.items())[:size] for row in edges]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_row_has_the_best_edges_of_either_end(data: st.DataObject) -> None:
    rows, size = data.draw(st.integers(1, 25)), data.draw(st.integers(1, 6))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    vectors = np.round(random.normal(size=(rows, 3)))  # many ties
    cosines = (vectors @ vectors.T).astype(np.float32)
    ids = np.full((rows, size), -1, np.int64)
    values = np.full((rows, size), -np.inf, np.float32)
    for row in range(rows):  # a search that misses some, and finds fewer than asked for
        seen = random.permutation(rows)[: random.integers(0, rows + 1)]
        best = sorted(seen, key=lambda other: (-cosines[row, other], other))[:size]
        ids[row, : len(best)], values[row, : len(best)] = best, cosines[row, best]

    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=3)))
    bounds = list(pairwise([0, *cuts, rows]))
    parts = [(first, ids[first:last], values[first:last]) for first, last in bounds]
    targets = data.draw(st.sampled_from([1, 3, 100]))
    blocks = list(from_either_end(lambda: parts, rows, size, targets))
    nearest, nearness = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    for row, expected in enumerate(edges_from_either_end(ids, values, size)):
        assert nearest[row].tolist() == [other for _, other in expected] + [-1] * (size - len(expected))
        assert nearness[row, : len(expected)].tolist() == [-value for value, _ in expected]
        assert np.isneginf(nearness[row, len(expected) :]).all()


def test_shards_are_searched_together_up_to_a_size() -> None:
    assert groups([], 5) == [range(0)]
    assert groups([0, 0, 7, 0, 1], 5) == [range(2), range(2, 3), range(3, 5)]
    assert groups([2, 2, 2, 2], 4) == [range(2), range(2, 4)]


def test_a_graph_is_read_as_written_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.npy"
    graph = np.zeros(3, graph_type(3, 2))
    graph["ids"], graph["cosines"] = [[0, 1], [1, -1], [2, 0]], [[1, 0.5], [1, -np.inf], [1, 0.25]]
    np.save(path, graph)
    size = path.stat().st_size
    ids, cosines = look_up(read_graph(str(path), size, 3, 2), np.array([2, 1]))
    assert (ids.tolist(), cosines.tolist()) == ([[2, 0], [1, -1]], [[1, 0.25], [1, -np.inf]])
    for rows, length, neighbors in ((4, size, 2), (3, size - 1, 2), (3, size, 3)):
        with pytest.raises(CocuError, match="delete it and run again"):
            read_graph(str(path), length, rows, neighbors)
    np.save(path, np.zeros(3))
    with pytest.raises(CocuError, match="not a graph"):
        read_graph(str(path), path.stat().st_size, 3, 2)
    graph["ids"][1, 1] = 3
    with pytest.raises(CocuError, match="beyond its 3"):
        look_up(graph, np.arange(3))


# --- in a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` chooses inverted lists for a tiny world too."""
    monkeypatch.setattr(choose, "EXACT_UP_TO", {False: 0, True: 0})
    monkeypatch.setattr(choose, "LEAST_ROWS", 1)
    monkeypatch.setattr(choose, "list_count", lambda rows: 12)


def graph_of(folder: Path) -> np.ndarray:
    return np.load(folder / "index" / "graph.npy")


@pytest.mark.usefixtures("few_lists")
def test_a_run_with_a_graph(world, finished, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "out"
    assert curate(world, folder) == 0
    notes = json.loads((folder / "index" / "index.json").read_text())
    assert notes["index"]["parameters"]["factory"] == "IVF6,Flat"
    assert notes["tune index"]["graph"]["recall"] >= 0.95
    assert not (folder / "neighbours").exists()
    graph, archives = graph_of(folder), archived(folder)
    paths = sorted((folder / "embeddings").glob("*.parquet"))
    columns = [pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks() for path in paths]
    vectors = normalise(np.concatenate([column.flatten().to_numpy().reshape(len(column), -1) for column in columns]))
    assert len(graph) == len(vectors)

    # The noted recall is that of the graph; every cosine is that of its two images.
    config = open_run(str(folder)).config.retrieval
    products = vectors @ vectors.T
    held = graph["ids"] >= 0
    rows = np.nonzero(held)[0]
    np.testing.assert_allclose(graph["cosines"][held], products[rows, graph["ids"][held]], atol=2e-3)
    np.fill_diagonal(products, -2)
    last = -np.sort(-products, axis=1)[:, config.neighbors - 1]
    ids = np.where(graph["ids"] == np.arange(len(graph))[:, None], -1, graph["ids"])
    near = (np.take_along_axis(products, np.maximum(ids, 0), 1) >= last[:, None] - 1e-6) & (ids >= 0)
    share = np.minimum(near.sum(axis=1), config.neighbors).mean() / config.neighbors
    assert share == pytest.approx(notes["tune index"]["graph"]["recall"], abs=0.002)

    # The same, whatever is searched together, and from nothing.
    monkeypatch.setattr(stages, "TOGETHER", 1)
    shutil.rmtree(folder / "archives")
    (folder / "index" / "graph.npy").unlink()
    assert curate(world, folder) == 0
    assert (graph_of(folder) == graph).all()
    assert archived(folder) == archives
    assert curate(world, tmp_path / "again") == 0
    assert archived(tmp_path / "again") == archives


@pytest.mark.usefixtures("few_lists")
def test_parts_of_a_graph_are_kept_after_a_kill(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "TOGETHER", 1)  # every shard is a part
    write, folder = stages._write_neighbours, tmp_path / "out"

    def killed(run, *more):
        if len(list((folder / "neighbours").glob("*.parquet"))) == 2 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise CocuError("killed")
        write(run, *more)

    table = [replace(stage, compute=killed) if stage.name == "neighbours" else stage for stage in stages.GRAPH]
    monkeypatch.setattr(sys.modules["curation.run.stages.plan"], "GRAPH", table)
    assert curate(world, folder) == 1
    written = {path: path.stat().st_mtime_ns for path in (folder / "neighbours").glob("*.parquet")}
    assert len(written) == 2
    monkeypatch.setattr(stages.files, "remove", lambda path: None)  # so that the parts can be looked at
    assert curate(world, folder) == 0
    assert len(list((folder / "neighbours").glob("*.parquet"))) == 3
    assert {path: path.stat().st_mtime_ns for path in written} == written


def write_embeddings(folder: Path, vectors: np.ndarray, parts: int) -> Path:
    """A clip-retrieval folder of unit vectors, whose captions name a ground each."""
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    for part, rows in enumerate(np.array_split(np.arange(len(vectors)), parts)):
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", vectors[rows].astype(np.float16))
        captions = [f"something on {list(GROUNDS)[row % len(GROUNDS)]}" for row in rows]
        columns = {"key": [f"{row:05d}" for row in rows], "caption": captions}
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{part}.parquet")
    return folder


@pytest.fixture(scope="module")
def crowded(world, tiny_clip, tmp_path_factory) -> Path:
    """Eight thousand embeddings, a third of them copies of three pictures, too many for the memory of an exact index."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 32))
    vectors = normalise(centres[random.integers(0, 40, 8000)] + 0.7 * random.normal(size=(8000, 32)))
    copies = random.permutation(8000)[:2500]
    vectors[copies] = vectors[copies % 3]
    folder = write_embeddings(tmp_path_factory.mktemp("crowded") / "embeddings", vectors, 5)
    return write_world(
        world.parent / "crowded.yaml",
        tiny_clip,
        shards="",
        embeddings=str(folder),
        retrieval={"neighbors": 6, "memory": "2900000"},
    )


def check_recall(folder: Path) -> None:
    """Recall counts copies that are as near as the true neighbours, by what images are and not by what the index rounds
    them to; and tuning reads the images a few times, not once for every setting that it tries."""
    run = open_run(str(folder))
    kind, passes = INDEXES["image"], []

    def vectors() -> Iterator[np.ndarray]:
        passes.append(1)
        return kind.vectors(run)

    opened = open_index(run.index("image"), None, recorded(run.index_json, "index")["bytes"], "cpu")
    held_out = HeldOut.of(opened, run.config.retrieval, vectors, vectors, both_ends=True)
    assert held_out.truth.tied.any()
    held_out.least_search(held_out.least_search()[0], from_either_end=True)
    assert 4 < len(passes) < 8

    every = np.concatenate(list(kind.vectors(run)))
    for probes in (1, 8, 64):
        set_search(opened.faiss, f"nprobe={probes}")
        ids = opened.search(held_out.queries, run.config.retrieval.neighbors + 1)[1]
        plain = held_out.truth.recall(ids, lambda query, of: (held_out.queries[query] * every[of]).sum(1))
        assert held_out.recall() == pytest.approx(plain, abs=1e-9)


def test_archives_do_not_depend_on_the_workers(crowded, tmp_path) -> None:
    assert curate(crowded, tmp_path / "one") == 0
    notes = json.loads((tmp_path / "one" / "index" / "index.json").read_text())
    assert notes["index"]["parameters"]["factory"] == "IVF128,SQfp16"
    assert notes["tune index"]["graph"]["recall"] >= 0.95
    check_recall(tmp_path / "one")
    archives, graph = archived(tmp_path / "one"), graph_of(tmp_path / "one")
    assert curate(crowded, tmp_path / "three", "--workers", "3", runner="DirectRunner") == 0
    assert (graph_of(tmp_path / "three") == graph).all()
    assert archived(tmp_path / "three") == archives
