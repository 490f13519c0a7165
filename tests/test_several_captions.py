"""A run over images with several captions, from tars and from an import: archives, training, tools."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import archived, curate, tables
from rich.console import Console
from tiny_world import COLOURS, GROUNDS, jpeg, write_tar, write_world

from curation.archive import SEVERAL, ConceptArchive, Sampler, read_archive
from curation.base.errors import CocuError
from curation.concepts import Matcher
from curation.run.run import open_run
from curation.tools.export import Export
from curation.tools.show import show
from curation.tools.verify import verify
from training.stream import Stream, TrainingShard, count_pairs

FIELDS = ["txt", "alt", "json:blip.captions"]
CONCEPTS = [*COLOURS, *GROUNDS]
ROWS = 24


def captions_of(rng: np.random.Generator, objects: list[str], ground: str) -> dict[str, list[str]]:
    """Captions by field: the first object; the same, or nothing; and two by a captioner, one of them wrong at times."""
    wrong = str(rng.choice(list(COLOURS)))
    alt = [[f"a {objects[0]}"], [f"{objects[1]} for sale"], []][int(rng.integers(3))]
    blip = [f"a {objects[-1]} on {ground}", f"a {wrong} and {objects[0]}s"]
    return {"txt": [f"a {objects[0]}"], "alt": alt, "json:blip.captions": blip}


def members(key: str, picture: bytes, captions: dict[str, list[str]]) -> list[tuple[str, bytes]]:
    sidecar = {"url": "http://x", "blip": {"captions": captions["json:blip.captions"]}}
    files = [(f"{key}.jpg", picture), (f"{key}.txt", captions["txt"][0].encode())]
    files += [(f"{key}.alt", text.encode()) for text in captions["alt"]]
    return [*files, (f"{key}.json", json.dumps(sidecar).encode())]


@pytest.fixture(scope="module")
def said() -> dict[str, dict[str, list[str]]]:
    """Captions by field, by key."""
    return {}


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_clip, said):
    """Two tars whose samples have several captions; the last sample of each has none that can be used."""
    folder = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(3)
    for shard in range(2):
        content = []
        for row in range(ROWS):
            key = f"{shard:02d}{row:04d}"
            objects = [str(name) for name in rng.choice(list(COLOURS), 2, replace=False)]
            ground = str(rng.choice(list(GROUNDS)))
            said[key] = captions_of(rng, objects, ground)
            picture = jpeg(ground=GROUNDS[ground], **{name: COLOURS[name] for name in objects})
            content += members(key, picture, said[key])
        bad = [("bad.jpg", jpeg()), ("bad.txt", b" "), ("bad.json", b'{"blip": {"captions": 3}}')]
        write_tar(folder / f"{shard:05d}.tar", content + bad)
    (folder / "concepts.txt").write_text("\n".join(CONCEPTS) + "\n")
    return write_world(folder / "several.yaml", tiny_clip, shards="{00000..00001}.tar", captions=FIELDS)


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "out"
    assert curate(data, folder) == 0
    return folder


def mentions(said: dict[str, list[str]]) -> dict[str, set[str]]:
    """Concepts that captions by field mention, and which fields do: word by word."""
    fields: dict[str, set[str]] = {}
    for field, texts in said.items():
        for text in texts:
            words = f" {text} ".replace("s ", " ")
            for concept in CONCEPTS:
                if f" {concept} " in words:
                    fields.setdefault(concept, set()).add(field)
    return fields


def test_embeddings_have_all_captions_and_the_union_of_their_concepts(out, said):
    rows = {row["key"]: row for table in tables(out, "embeddings").values() for row in table.to_pylist()}
    assert rows.keys() == said.keys()
    for key, row in rows.items():
        texts = Counter(text for own in said[key].values() for text in set(own))
        assert {caption["text"]: len(caption["sources"]) for caption in row["captions"]} == texts
        assert row["caption"] == row["captions"][0]["text"] == said[key]["txt"][0]
        named = {
            CONCEPTS[concept]: {field for bit, field in enumerate(FIELDS) if bits >> bit & 1}
            for concept, bits in zip(row["concepts"], row["sources"], strict=True)
        }
        assert named == mentions(said[key])


def test_archives_say_which_captions_named_a_concept(out, said):
    source = pq.read_table(out / "vocabulary.parquet")
    counts = dict(zip(source["concept"].to_pylist(), source["count"].to_pylist(), strict=True))
    everything = [mentions(own) for own in said.values()]
    assert counts == {
        concept: sum(concept in own for own in everything) for concept in CONCEPTS
    }  # an image counts once

    by_key = archived(out)
    fields = {field for entries in by_key.values() for entry in entries for field in entry["sources"]}
    assert fields == set(FIELDS)
    for key, entries in by_key.items():
        own = mentions(said[key])  # the anchor is its own first neighbour
        held = {entry["concept"]: entry for entry in entries}
        assert own.keys() <= held.keys()
        for concept, entry in held.items():
            assert own.get(concept, set()) <= set(entry["sources"])
            assert entry["sources"] == [field for field in FIELDS if field in entry["sources"]]
            assert 1 <= entry["support"] <= 4
    assert not verify(open_run(str(out)), 100)  # neighbours, scores and sources by the plain formulas


def test_verify_finds_a_source_that_is_wrong(out):
    copied = shutil.copytree(out, out.parent / "spoilt")
    path = copied / "archives" / "00000.parquet"
    metadata = pq.read_metadata(path).metadata
    rows = read_archive(str(path)).to_pylist()
    for row in rows:
        entry = row["concepts"][0]
        entry["sources"] = [next(field for field in FIELDS if [field] != entry["sources"])]
    schema = SEVERAL.with_metadata({key: value for key, value in metadata.items() if key.startswith(b"cocu")})
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    problems = verify(open_run(str(copied)), 100)
    assert problems  # of archives whose neighbours are certain
    assert all(" is mentioned by [" in problem.what for problem in problems), problems


def test_rejects_say_why_no_caption_could_be_used(out):
    reasons = [row["reason"] for table in tables(out, "rejects").values() for row in table.to_pylist()]
    assert reasons == ["caption is empty"] * 2  # that of the first field


@pytest.mark.parametrize("expansion", ["caption", "tagging", "text"])
def test_every_expansion_knows_its_sources(data, out, said, tmp_path, expansion):
    assert curate(data, tmp_path / "out", "--archive.expansion", expansion) == 0
    for key, entries in archived(tmp_path / "out").items():
        sources = {entry["concept"]: set(entry["sources"]) for entry in entries}
        if expansion == "caption":
            assert sources == mentions(said[key])
        elif expansion == "tagging":
            assert not any(sources.values())
        else:
            assert all(sources.values())
    assert not verify(open_run(str(tmp_path / "out")), 20)


def test_text_embeddings_of_several_captions_are_their_mean(data, tmp_path, said):
    from curation import encoder

    assert curate(data, tmp_path / "out", "--archive.expansion", "text") == 0
    run = open_run(str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "captions" / "00000.parquet").slice(0, 3).to_pylist()
    for row in table:
        texts = list(dict.fromkeys(text for own in said[row["key"]].values() for text in own))
        mean = encoder.load(run.config.encoder).encode_texts(texts).mean(0)
        np.testing.assert_allclose(row["embedding"], mean / np.linalg.norm(mean), atol=2e-3)


def test_runs_without_captions_are_as_they_were(data, out, tmp_path):
    """The first field alone: no column more, and the configuration is recorded without the key."""
    assert curate(data, tmp_path / "out", "--captions", "[]") == 0
    (one, other) = tables(tmp_path / "out", "archives").values()
    assert one.column_names == ["key", "caption", "concepts"]
    assert "sources" not in other.to_pylist()[0]["concepts"][0]
    assert pq.read_schema(tmp_path / "out" / "embeddings" / "00000.parquet").names == [
        *("key", "caption", "concepts", "embedding")
    ]
    assert "captions" not in json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert curate(data, tmp_path / "out", "--captions", "[txt]") == 0  # asked for, it is computed again
    assert "sources" in archived(tmp_path / "out")["000000"][0]


def test_another_run_is_searched_with_its_own_fields(data, out, said, tmp_path):
    options = ["--retrieval.data", str(out), "--name", "other"]
    assert curate(data, tmp_path / "one", *options, "--captions", "[txt]") == 0
    fields = {
        field for entries in archived(tmp_path / "one").values() for entry in entries for field in entry["sources"]
    }
    assert fields == set(FIELDS)
    assert not verify(open_run(str(tmp_path / "one")), 20)
    assert curate(data, tmp_path / "two", *options, "--captions", "[]") == 0
    assert "sources" not in archived(tmp_path / "two")["000000"][0]


def test_a_built_vocabulary_counts_an_image_once(data, tmp_path, said):
    options = ["--vocabulary.source", "build", "--vocabulary.min_count", "2", "--vocabulary.visualness", "-9"]
    assert curate(data, tmp_path / "out", *options) == 0
    with open(tmp_path / "out" / "vocabulary.csv") as stream:
        counts = {row["concept"]: int(row["count"]) for row in csv.DictReader(stream)}
    everything = [mentions(own) for own in said.values()]
    for name in ("apple", "banana", "boat"):
        expected = sum(name in own for own in everything)
        named = next(concept for concept in counts if Matcher([name]).match(concept))
        assert 0.8 * expected <= counts[named] <= expected  # but for what the tagger does not take for a noun
    assert not verify(open_run(str(tmp_path / "out")), 20)


# --- training -----------------------------------------------------------------------------------------------------------


def seen(archive: ConceptArchive, epoch: int, sampler: Sampler) -> dict[str, tuple[str, list[str]]]:
    """Caption and prompts of every sample in an epoch, by key."""
    from training.plan import Span

    shards = tuple(TrainingShard(source, archive) for source in archive.sources)
    stream = Stream(shards, sampler, shuffled=0, seed=5)
    spans = [Span(number, 0, 1 << 60) for number in range(len(shards))]
    outcomes = [sample for sample in stream.read(spans, epoch, 0) if not isinstance(sample, str)]
    return {sample.where.rpartition(": ")[2]: (sample.caption, sample.prompts) for sample in outcomes}


def test_training_draws_another_caption_every_epoch(out, said):
    archive = ConceptArchive.open(str(out))
    assert count_pairs(tuple(TrainingShard(source, archive) for source in archive.sources), True) == [ROWS, ROWS]
    many = Sampler("top", 20)  # more than archives have: captions fill the rest
    epochs = [seen(archive, epoch, many) for epoch in range(8)]
    assert seen(archive, 0, many) == epochs[0]
    for key, own in said.items():
        texts = {text for field in own.values() for text in field}
        captions = {epoch[key][0] for epoch in epochs}
        assert captions <= texts
        for epoch in epochs:
            assert epoch[key][1][-1] == epoch[key][0]  # the caption that fills prompts is the one that is seen
    assert np.mean([len({epoch[key][0] for epoch in epochs}) > 1 for key in said]) > 0.9

    prompts = archive.prompts(list(said), many, seed=5, epoch=3)
    assert prompts == [epochs[3][key][1] for key in said]


def test_tars_without_archives_are_drawn_from_alike(out, said):
    archive = ConceptArchive.open(str(out))
    bare = tuple(TrainingShard(source, None) for source in archive.sources)
    stream = Stream(bare, Sampler("top", 20), shuffled=0, seed=5, required=False)
    from training.plan import Span

    outcomes = [stream.read([Span(number, 0, 1 << 60)], 2, 0) for number in range(2)]
    captions = {
        sample.where.rpartition(": ")[2]: sample.caption
        for part in outcomes
        for sample in part
        if not isinstance(sample, str)
    }
    assert captions == {key: caption for key, (caption, _) in seen(archive, 2, Sampler("top", 20)).items()}


def test_joined_samples_have_sources(out):
    import webdataset

    archive = ConceptArchive.open(str(out))
    tars = [source.path for source in archive.sources]
    joined = list(webdataset.WebDataset(tars, shardshuffle=False).compose(archive.join))
    assert len(joined) == 2 * ROWS
    assert joined[0]["concepts"] == archive[joined[0]["__key__"]]["concepts"]
    assert joined[0]["concepts"][0]["sources"]


# --- tools --------------------------------------------------------------------------------------------------------------


def test_tables_have_captions_and_sources(out, said):
    archive = ConceptArchive.open(str(out)).filter(top=2)
    assert archive.to_arrow().schema == SEVERAL
    assert archive.select([]).schema == SEVERAL
    flat = archive.to_arrow(flat=True)
    assert flat.column_names[-1] == "sources"
    data = archive.to_datasets()
    assert data[0] == next(iter(archive.to_datasets(streaming=True))) == next(iter(archive))
    assert data[0]["captions"][0] == {
        "text": said["000000"]["txt"][0],
        "sources": archive["000000"]["captions"][0]["sources"],
    }


def test_archives_that_pandas_has_rewritten_keep_their_sources(out, tmp_path):
    path = tmp_path / "00000.parquet"
    ours = read_archive(str(out / "archives" / "00000.parquet"))
    pq.write_table(pa.Table.from_pandas(ours.to_pandas()), path, row_group_size=7)
    assert read_archive(str(path)).to_pylist() == ours.to_pylist()


def test_show_report_and_export_name_the_fields(out, said, tmp_path, capsys):
    show(open_run(str(out)), ["000000"], 1, Console(width=300))
    printed = capsys.readouterr().out
    for field, texts in said["000000"].items():
        assert all(text in printed for text in texts)
        assert field in printed or not texts
    assert " | " in printed  # captions of neighbours

    page = (out / "report.html").read_text()
    assert "The captions of an image name" in page
    assert "json:blip.captions" in page

    archive = ConceptArchive.open(str(out))
    assert Export(archive, str(tmp_path / "jsonl"), "jsonl").write() == 2 * ROWS
    row = json.loads((tmp_path / "jsonl" / "00000.jsonl").read_text().splitlines()[0])
    assert row == archive["000000"]
    assert Export(archive, str(tmp_path / "csv"), "csv", "{caption}; {concepts}").write() == 2 * ROWS
    with open(tmp_path / "csv" / "train.csv", newline="") as stream:
        titles = Counter(row["key"] for row in csv.DictReader(stream, delimiter="\t"))
    assert titles == {key: len({text for own in said[key].values() for text in own}) for key in said}


def test_measure_knows_several_captions(out, tmp_path):
    from curation.tools.measure import main

    lines = [{"key": key, "concepts": ["apple", "sand"]} for key in ("000000", "000001", "010003")]
    (tmp_path / "truth.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main([str(out), "--truth", str(tmp_path / "truth.jsonl"), "--without", "0"]) == 0


# --- imports ------------------------------------------------------------------------------------------------------------


def test_columns_of_an_import(out, said, tiny_clip, tmp_path):
    """The embeddings and captions of the run as clip-retrieval writes them give the same archives, by column."""
    for part, table in enumerate(tables(out, "embeddings").values()):
        keys = table["key"].to_pylist()
        vectors = np.array(table["embedding"].to_pylist(), np.float16)
        columns = {
            "key": keys,
            "Caption": [said[key]["txt"][0] for key in keys],
            "alt": [(said[key]["alt"] or [None])[0] for key in keys],
            "metadata": [json.dumps({"blip": said[key]["json:blip.captions"]}) for key in keys],
        }
        for folder in ("img_emb", "metadata"):
            (tmp_path / "import" / folder).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "import" / "img_emb" / f"img_emb_{part}.npy", vectors)
        pq.write_table(pa.table(columns), tmp_path / "import" / "metadata" / f"metadata_{part}.parquet")
    (tmp_path / "concepts.txt").write_text("\n".join(CONCEPTS) + "\n")
    fields = ["Caption", "alt", "metadata:blip"]
    changes = {"shards": "", "embeddings": "import", "captions": fields}
    path = write_world(tmp_path / "import.yaml", tiny_clip, **changes)
    assert curate(path, tmp_path / "out") == 0

    names = dict(zip(FIELDS, fields, strict=True))
    ours, theirs = archived(out), archived(tmp_path / "out")
    for key, entries in ours.items():
        renamed = {entry["concept"]: [names[field] for field in entry["sources"]] for entry in entries}
        assert {entry["concept"]: entry["sources"] for entry in theirs[key]} == renamed

    with pytest.raises(CocuError, match="needs the columns missing and key"):
        from curation.samples import read_import

        read_import(str(tmp_path / "import" / "img_emb" / "img_emb_0.npy"), ["missing"])
