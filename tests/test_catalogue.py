"""The catalogue of a run, compared with its archives as they are; built once, and again when the run was."""

from __future__ import annotations

import os

import pyarrow.parquet as pq
import pytest
from curated import NAMES, copy, tables

from curation.base.errors import CocuError, OutputError
from curation.run.run import open_run
from curation.tools.browse import catalogue as module
from curation.tools.browse.catalogue import open_catalogue


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def opened(finished, cache):
    return open_catalogue(open_run(str(finished)), str(cache))


@pytest.fixture(scope="module")
def archives(finished):
    return [row for name in NAMES for row in tables(finished, "archives")[name].to_pylist()]


@pytest.fixture(scope="module")
def names(finished):
    return pq.read_table(finished / "vocabulary.parquet")["concept"].to_pylist()


def test_rows_are_those_of_the_shards_in_order(opened, archives):
    assert len(opened) == len(archives)
    assert [(opened.key(row), opened.caption(row)) for row in range(len(opened))] == [
        (archive["key"], archive["caption"]) for archive in archives
    ]
    assert opened.position(0) == (0, 0)
    assert opened.position(len(archives) - 1) == (2, 23)
    for row in (-1, len(archives)):
        with pytest.raises(CocuError, match="archives"):
            opened.position(row)


def test_a_concept_has_its_archives_the_best_first(opened, archives, names, finished):
    said = [row["concepts"] for name in NAMES for row in tables(finished, "embeddings")[name].to_pylist()]
    for number, name in enumerate(names):
        expected = [
            (-entry["score"], row, entry["support"], number in said[row])
            for row, archive in enumerate(archives)
            for entry in archive["concepts"]
            if entry["concept"] == name
        ]
        found = opened.postings(number)
        columns = (-found.score, found.row, found.support, found.said)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == sorted(expected)
        assert opened.concept_counts[number] == len(found) == len(expected)


def test_companions_share_a_cluster(opened, archives, names):
    for number in range(len(names)):
        found = opened.postings(number)
        for row, companion in zip(found.row.tolist(), found.companion.tolist(), strict=True):
            clusters = {entry["concept"]: entry["cluster"] for entry in archives[row]["concepts"]}
            mates = [name for name, cluster in clusters.items() if cluster == clusters[names[number]]]
            mates.remove(names[number])
            assert (names[companion] if companion >= 0 else None) == (mates[0] if mates else None)


@pytest.mark.parametrize(
    "query", ["apple", "photo of", "A PHOTO, of... sand", "apple sand snow", "appl", "", "apples night"]
)
def test_captions_are_found_by_all_of_their_words(query, opened, archives):
    wanted = set(query.lower().replace(",", " ").replace(".", " ").split())
    expected = [row for row, a in enumerate(archives) if wanted and wanted <= set(a["caption"].lower().split())]
    assert opened.rows_saying(query).tolist() == expected


@pytest.mark.parametrize("prefix", ["000000", "0000", "01", "9", "0200", "", "zzz", "000000x"])
def test_keys_are_found_by_how_they_begin(prefix, opened, archives):
    expected = [row for row, archive in enumerate(archives) if prefix and archive["key"].startswith(prefix)]
    assert opened.rows_of_key(prefix).tolist() == sorted(expected, key=lambda row: archives[row]["key"])


def test_rejects_have_their_kind_of_reason(opened, finished):
    expected = [
        (number, row, reject["key"], reject["reason"])
        for number, name in enumerate(NAMES)
        for row, reject in enumerate(tables(finished, "rejects")[name].to_pylist())
    ]
    found = opened.rejects.to_pylist()
    assert [(row["shard"], row["row"], row["key"], row["reason"]) for row in found] == expected
    assert len(expected) == 3
    assert {row["kind"] for row in found} >= {"caption is empty"}


def test_it_is_built_once_and_again_when_the_run_was(finished, tmp_path, monkeypatch):
    folder = copy(finished, tmp_path)
    run = open_run(str(folder))
    built = []
    monkeypatch.setattr(module, "build", lambda *arguments: built.append(1) or {"rows": [24, 24, 24]})
    for _ in range(2):
        open_catalogue(run, str(tmp_path / "cache"))
    assert built == [1]
    os.utime(folder / "manifest.json", (1, 1))
    open_catalogue(run, str(tmp_path / "cache"))
    assert built == [1, 1]


def test_a_build_that_fails_leaves_nothing(finished, tmp_path, monkeypatch):
    def fail(*arguments):
        raise CocuError("damaged")

    monkeypatch.setattr(module, "build", fail)
    with pytest.raises(CocuError, match="damaged"):
        open_catalogue(open_run(str(finished)), str(tmp_path / "cache"))
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_archives_and_embeddings_of_different_runs_are_an_error(finished, tmp_path):
    folder = copy(finished, tmp_path)
    os.replace(folder / "embeddings" / "00001.parquet", folder / "embeddings" / "00000.parquet")
    with pytest.raises(CocuError, match=r"00000\.parquet: its keys are not those of the archives"):
        open_catalogue(open_run(str(folder)), str(tmp_path / "cache"))


def test_a_cache_that_cannot_be_made_is_one_line(finished, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="give another --cache"):
        open_catalogue(open_run(str(finished)), str(tmp_path / "file" / "cache"))
