"""Archives for another download of the same data: each sample its own archive, or none."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_world import COLOURS, GROUNDS, scene, write_tar, write_world

from curation.archive import ConceptArchive
from curation.archive.identity import IDENTITIES, SCHEMA
from curation.archive.matching import AMBIGUOUS, CHANGED, NONE, OTHER_CAPTION, UNUSABLE, match
from curation.base.errors import CocuError
from curation.tools.export import main as export
from curation.tools.match import main as match_command
from pipelines.curate import main as curate

SCENES = 130
GONE = 0.38  # of CC12M, by 2026


class Sample(dict):
    """url, caption, picture (bytes as fetched), truth."""


def fetched(number: int) -> Sample:
    picture, caption, truth = (content for _, content in scene(np.random.default_rng(number), "x"))
    url = f"https://host/{number}.jpg"
    unique = picture + number.to_bytes(4, "big")  # behind the end of the JPEG: few scenes differ otherwise
    return Sample(url=url, caption=caption.decode(), picture=unique, truth=json.loads(truth))


def smaller(picture: bytes) -> bytes:
    """The picture as another setting of img2dataset would store it."""
    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((36, 36)).save(out, "JPEG", quality=80)
    return out.getvalue()


def members(key: str, sample: Sample, with_url: bool = True, resized: bool = False, original: bytes | None = None):
    picture = smaller(sample["picture"]) if resized else sample["picture"]
    sidecar = {"key": key, "caption": sample["caption"], **sample["truth"]}
    if with_url:
        hashed = hashlib.sha256(sample["picture"] if original is None else original).hexdigest()
        sidecar |= {"url": sample["url"], "sha256": hashed}
    return [
        (f"{key}.jpg", picture),
        (f"{key}.json", json.dumps(sidecar).encode()),
        (f"{key}.txt", sample["caption"].encode()),
    ]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """The whole data; two rows have one address and two captions, and two are the same in everything."""
    data = [fetched(number) for number in range(SCENES)]
    data[7] = Sample(data[3], caption="a kite above the snow")
    data[40] = Sample(data[11])
    return data


@pytest.fixture(scope="module")
def run(samples, tiny_clip, tmp_path_factory) -> Path:
    """A finished run over all of it, 50 samples a tar."""
    folder = tmp_path_factory.mktemp("first")
    for shard in range(3):
        chosen = range(50 * shard, min(50 * (shard + 1), SCENES))
        content = [member for number in chosen for member in members(f"{number:06d}", samples[number])]
        write_tar(folder / f"{shard:05d}.tar", content)
    (folder / "concepts.txt").write_text("\n".join([*COLOURS, *GROUNDS]) + "\n")
    path = write_world(folder / "first.yaml", tiny_clip)
    assert curate(["--data", str(path), "--output", str(folder / "out"), "--runner", "inprocess"]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def download(samples, tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """Another download: 38% are gone, the others have other keys, tars and an order of their own; some changed.

    Returns its folder, and the number of the sample behind every key that must be found.
    """
    rng = np.random.default_rng(1)
    kept = [number for number in rng.permutation(SCENES).tolist() if number not in (3, 7, 11, 40)]
    kept = kept[: round((1 - GONE) * SCENES) - 2]
    order = [3, 11, *kept]  # one of two captions, and one of two that are the same
    found: dict[str, int] = {}
    content: list[list[tuple[str, bytes]]] = []
    for position, number in enumerate(order):
        key = f"{position // 16:03d}{position:04d}"  # 000006 is another picture than in the run
        if position % 9 == 4:  # its server sends another picture now
            content.append(members(key, samples[number], original=b"another", resized=True))
        elif position % 9 == 5:  # without sidecars of img2dataset
            content.append(members(key, samples[number], with_url=False))
            found[key] = number
        elif position % 9 == 6:  # of which neither address nor content is as before
            content.append(
                members(key, Sample(samples[number], url="https://mirror/" + key), resized=True, original=b"?")
            )
        elif position % 9 == 7:  # moved, and resized otherwise: what was fetched is the same
            content.append(members(key, Sample(samples[number], url="https://mirror/" + key), resized=True))
            found[key] = number
        else:
            content.append(members(key, samples[number], resized=True))
            found[key] = number
    content.append(members("zzz", fetched(9999)))
    content.append(members("zzzz", Sample(samples[20], caption="a caption that is new"), resized=True))
    content.append(members("zzzzz", Sample(samples[20], caption=" ")))
    found = {key: number for key, number in found.items() if number != 11}  # which may be 40 as well

    folder = tmp_path_factory.mktemp("second")
    for start in range(0, len(content), 16):
        write_tar(
            folder / f"{start // 16:05d}.tar", [member for group in content[start : start + 16] for member in group]
        )
    return folder, found


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "archives").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_sample_has_its_own_archive_or_none(run, download, samples, tmp_path, capsys):
    tars, found = download
    folder = tmp_path / "matched"
    assert match_command([str(run), str(tars / "*.tar"), "--to", str(folder)]) == 0
    before = {row["key"]: row for row in rows_of(run)}
    after = rows_of(folder)
    assert {row["key"] for row in after} == set(found)
    assert len(found) > 40
    for row in after:
        original = before[f"{found[row['key']]:06d}"]
        assert row == original | {"key": row["key"]}

    matched = json.loads((folder / "manifest.json").read_text())["chosen"]["matched"]
    total = sum(1 for sample in wds.WebDataset(sorted(map(str, tars.glob("*.tar"))), shardshuffle=False))
    assert matched["samples"] == total
    assert sum(matched["found"].values()) == len(found)
    assert sum(matched["found"].values()) + sum(matched["missing"].values()) == total
    assert all(matched["found"][name] for name in IDENTITIES)
    assert (matched["archives"], matched["covered"]) == (SCENES, len(set(found.values())))
    assert matched["missing"]["is several of the archives, all with its caption"] == 1
    assert matched["missing"]["is among the archives with another caption only"] == 1
    assert matched["missing"]["has no picture or no caption"] == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"{len(found)} of {total} samples have an archive; {len(set(found.values()))} of {SCENES} archives" in said


def test_the_folder_is_read_like_that_of_a_run(run, download, tmp_path):
    tars, found = download
    folder = tmp_path / "matched"
    assert match_command([str(run), str(tars / "*.tar"), "--to", str(folder)]) == 0
    archive = ConceptArchive.open(folder)
    assert len(archive) == len(found)
    stream = wds.WebDataset([source.path for source in archive.sources], shardshuffle=False).compose(archive.join)
    joined = {sample["__key__"]: sample for sample in stream}
    assert joined.keys() == found.keys()  # what has no archive is left out, as rejects are
    first = ConceptArchive.open(run)
    for key, number in found.items():
        assert joined[key]["concepts"] == first[f"{number:06d}"]["concepts"]
    unsaid = archive.filter(omitted=True)
    expected = first.filter(omitted=True)
    assert all(unsaid[key]["concepts"] == expected[f"{number:06d}"]["concepts"] for key, number in found.items())

    counts = archive.manifest["counts"]
    rows = rows_of(folder)
    assert counts["archive_concepts"] == sum(len(row["concepts"]) for row in rows)
    assert counts["gained"] == sum(bool(row["concepts"]) for row in unsaid)
    embeddings = [
        row for path in sorted((folder / "embeddings").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    assert [row["key"] for row in embeddings] == [row["key"] for row in rows]
    assert counts["caption_concepts"] == sum(len(row["concepts"]) for row in embeddings)


def test_archives_that_were_given_away_are_matched_without_their_tars(run, download, tmp_path, samples):
    tars, found = download
    given, folder = tmp_path / "given", tmp_path / "matched"
    assert export([str(run), "--format", "archives", "--identities", "--to", str(given)]) == 0
    manifest = json.loads((given / "manifest.json").read_text())
    manifest["paths"] = [f"gone/{name}.tar" for name in manifest["shards"]]
    (given / "manifest.json").write_text(json.dumps(manifest))
    assert match_command([str(given), str(tars / "*.tar"), "--to", str(folder)]) == 0
    before = {row["key"]: row for row in rows_of(run)}
    assert {row["key"]: row for row in rows_of(folder)} == {
        key: before[f"{number:06d}"] | {"key": key} for key, number in found.items()
    }


def test_one_identity_and_other_captions_where_that_is_asked_for(run, download, tmp_path):
    tars, found = download
    folder = tmp_path / "matched"
    words = [str(run), str(tars / "*.tar"), "--to", str(folder)]
    assert match_command([*words, "--by", "content"]) == 0
    by_content = {row["key"] for row in rows_of(folder)}
    assert by_content == {key for key in found if int(key[3:]) % 9 == 5}
    assert match_command([*words, "--any-caption"]) == 0  # written over: it was no run of its own
    rows = {row["key"]: row for row in rows_of(folder)}
    (more,) = rows.keys() - found.keys()
    assert more == "zzzz"
    (fewer,) = found.keys() - rows.keys()  # its address has two captions
    assert found[fewer] == 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(path.stem for path in (folder / "archives").iterdir()) == manifest["shards"]


def test_mistakes_are_one_line_and_a_run_is_not_written_over(run, download, tmp_path, capsys):
    tars, _ = download
    stranger = write_tar(tmp_path / "00000.tar", members("k", fetched(777), with_url=False))
    assert match_command([str(run), str(stranger), "--to", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "none of 1 samples is among its archives; its tars have no json sidecars with a url" in " ".join(
        error.split()
    )
    assert not (tmp_path / "out").exists()
    assert match_command([str(run), str(tars / "00000.tar"), str(stranger), "--to", str(tmp_path / "out")]) == 1
    assert "two tars are named 00000" in capsys.readouterr().err
    manifest = (run / "manifest.json").read_bytes()
    assert match_command([str(run), str(tars / "*.tar"), "--to", str(run)]) == 1
    assert "holds a run" in capsys.readouterr().err
    assert (run / "manifest.json").read_bytes() == manifest


# --- the rule, against one that looks at every pair ----------------------------------------------------------------------


texts = st.sampled_from(["a", "b"])
rows = st.lists(
    st.fixed_dictionaries(
        {
            "caption": texts,
            "url": texts | st.none(),
            "original": texts | st.none(),
            "content": st.sampled_from("abcdef"),
        }
    ),
    max_size=6,
)


def slowly(sample, others, any_caption):
    """One sample against all others, as the docstring says it."""
    if sample["caption"] is None:
        return UNUSABLE
    reason = NONE
    for name in IDENTITIES:
        alike = [n for n, other in enumerate(others) if sample[name] is not None and other[name] == sample[name]]
        same = alike if any_caption else [n for n in alike if others[n]["caption"] == sample["caption"]]
        if len(same) == 1:
            hashes = sample["original"], others[same[0]]["original"]
            if name == "url" and None not in hashes and hashes[0] != hashes[1]:
                return CHANGED
            return same[0]
        if len(same) > 1:
            reason = AMBIGUOUS
        elif alike:
            reason = OTHER_CAPTION
    return reason


@given(rows, rows, st.booleans())
def test_matching_is_what_looking_at_every_pair_gives(new, old, any_caption):
    new = [*new, {"caption": None, "url": "a", "original": None, "content": "a"}]
    tables = [pa.Table.from_pylist([{"key": "k", **row} for row in part], SCHEMA) for part in (new, old)]
    result = match(*tables, any_caption=any_caption)
    expected = [slowly(sample, old, any_caption) for sample in new]
    assert result.rows.tolist() == expected
    assert Counter((result.by >= 0).tolist())[True] == sum(row >= 0 for row in expected)


def test_a_key_that_is_missing_from_the_tars_of_the_run_is_said(run, tmp_path):
    from curation.archive.identity import of_keys

    with pytest.raises(CocuError, match=r"here.tar: k2 is missing: these are not the samples that were curated"):
        of_keys(pa.Table.from_pylist([{"key": "k1"}], SCHEMA), ["k1", "k2"], "here.tar")
