"""Every reader gets damaged input: it may refuse it with one clear line, and do nothing else.

Short in ``make test``; ``make faults`` sets FUZZ=1 and runs for some minutes.
"""

from __future__ import annotations

import copy
import io
import json
import os
import secrets
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny_world import jpeg

from curation import config
from curation.archive import ConceptArchive, read_archive
from curation.base import files
from curation.base.embeddings import normalise
from curation.base.errors import CocuError
from curation.base.parquet import read_metadata
from curation.base.ragged import Ragged
from curation.concepts import Matcher, tokens
from curation.index.build import empty_index, exact_index, write_index
from curation.index.open import open_index
from curation.mentions import Mentions, open_mentions, write_mentions
from curation.nouns import Caption, common_nouns, facts
from curation.run.records import recorded
from curation.run.run import open_run
from curation.samples import Reject, Sample, read_samples
from curation.tools import report, show
from curation.wordlists import read_concepts

EXAMPLES = 5000 if os.environ.get("FUZZ") else 60
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damage(draw, whole: bytes) -> bytes:
    """``whole`` with some bytes changed, and cut or lengthened."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, max(len(content) - 1, 0)))
        content[position : position + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def whole_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in [("a.jpg", jpeg(8)), ("a.txt", b"a dog"), ("é" * 80 + ".jpg", b"x"), ("b.txt", b"\xff")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


TAR = whole_tar()


@fuzz
@given(st.one_of(damage(TAR), st.binary(max_size=2000)))
def test_tars(content):
    try:
        found = list(read_samples(io.BytesIO(content), "shard.tar", "jpg", "txt"))
    except CocuError as error:
        assert str(error).startswith("shard.tar: cannot be read as a tar")
        assert "\n" not in str(error)
        return
    for item in found:
        assert isinstance(item, (Sample, Reject))
        pa.array([item.key, item.caption if isinstance(item, Sample) else item.reason], pa.string())


@fuzz
@given(st.text(max_size=200))
def test_captions(text):
    matcher = Matcher(["dog", "hot dog", "traffic light", "stop sign"])
    found = matcher.match(text)
    assert len(found) == len(set(found))
    assert all(0 <= number < 4 for number in found)
    words = tokens(text)
    assert "".join(words) == "".join("".join(words).split())
    tags = ["NN"] * len(words)
    said = facts(Caption(words, tags, common_nouns(words, tags)))
    assert all(1 <= len(fact.noun.split()) <= 4 for fact in said)


def only_curation_errors(read, path: Path) -> None:
    try:
        read(str(path))
    except CocuError as error:
        assert str(path) in str(error)


@pytest.fixture(scope="module")
def parquet(finished) -> bytes:
    return (finished / "archives" / "00000.parquet").read_bytes()


@fuzz
@given(st.data())
def test_parquet_metadata_and_archives(parquet, tmp_path, data):
    path = tmp_path / "a.parquet"
    path.write_bytes(data.draw(damage(parquet)))
    only_curation_errors(read_metadata, path)
    only_curation_errors(read_archive, path)
    assert isinstance(recorded(str(path), "archive"), dict)


def test_a_column_name_that_is_not_utf8_is_damage(parquet, tmp_path):
    """Found by fuzzing: Arrow raises UnicodeDecodeError here."""
    (tmp_path / "a.parquet").write_bytes(parquet.replace(b"support", b"supp\x80rt"))
    with pytest.raises(CocuError, match="not a complete Parquet file"):
        read_metadata(str(tmp_path / "a.parquet"))


@fuzz
@given(st.data())
def test_manifest(finished, tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data.draw(damage((finished / "manifest.json").read_bytes())))
    try:
        open_run(str(tmp_path))
    except CocuError as error:
        assert "\n" not in str(error)


@fuzz
@given(st.data())
def test_index_json(finished, tmp_path, data):
    path = tmp_path / "index.json"
    path.write_bytes(data.draw(damage((finished / "index" / "index.json").read_bytes())))
    only_curation_errors(files.read_json, path)
    assert isinstance(recorded(str(path), "index"), dict)


@fuzz
@given(st.data())
def test_yaml(world, tmp_path, data):
    path = tmp_path / "world.yaml"
    path.write_bytes(data.draw(st.one_of(damage(world.read_bytes()), st.text(max_size=80).map(str.encode))))
    only_curation_errors(config.load, path)


@fuzz
@given(st.data(), st.sampled_from(["txt", "csv", "parquet"]))
def test_vocabulary_files(finished, tmp_path, data, kind):
    whole = {"txt": b"dog\ncat\n", "csv": b"concept,kept\ndog,true\n"}
    whole["parquet"] = (finished / "vocabulary.parquet").read_bytes()
    path = tmp_path / f"concepts.{kind}"
    path.write_bytes(data.draw(damage(whole[kind])))
    only_curation_errors(read_concepts, path)


# --- forged, rather than damaged: files that are whole and say something else ---------------------------------------------

FORGED = [
    None,
    True,
    -1,
    0,
    3,
    1 << 70,
    1e300,
    "",
    "x",
    "../../x",
    "\x1b[2J",
    "x" * 1000,
    "a\0b",
    "\ud800",
    [],
    {},
    [[]],
    ["x"],
    {"a": 1},
]


def places(value, path=()):
    """Where the values of nested JSON are."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def forgery(draw, value):
    """JSON one to three of whose values are replaced or left out."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([place for place in places(value) if place]))
        inner = value
        for key in path:
            inner = inner[key]
        if isinstance(inner, dict) and draw(st.booleans()):
            del inner[last]
        else:
            inner[last] = copy.deepcopy(draw(st.sampled_from(FORGED)))
        if not value:
            break
    return value


@settings(parent=fuzz, max_examples=EXAMPLES // 3)
@given(st.data(), st.sampled_from(["manifest.json", "index/index.json"]))
def test_forged_json_is_refused_or_read(finished, forged, data, name):
    path = forged / name
    whole = (finished / name).read_text()
    path.write_text(json.dumps(data.draw(forgery(json.loads(whole)))))
    try:
        run = open_run(str(forged))
        show.show(run, [], 1, Console(file=io.StringIO()))
        report.page_of(run)
        assert ConceptArchive.open(forged).sources
    except CocuError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(whole)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of vectors that are not finite
@fuzz
@given(st.data(), st.sampled_from(["Flat", "IVF4,Flat", "IVF4,SQfp16", "HNSW8"]))
def test_indexes(indexes, tmp_path, data, factory):
    """The length stays, so that FAISS is asked to believe what is inside."""
    content = bytearray(indexes[factory])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, 250) | st.integers(0, len(content) - 9))
        size = data.draw(st.sampled_from([1, 4, 8]))
        content[start : start + size] = data.draw(st.binary(min_size=size, max_size=size) | st.just(b"\xff" * size))
    path = tmp_path / f"{secrets.token_hex(8)}.faiss"
    path.write_bytes(content)
    try:
        opened = open_index(str(path), size=len(content), shape=(200, 8))
        _, ids = opened.search(np.eye(8, dtype=np.float32), 3)
        assert ((ids >= -1) & (ids < 200)).all()
    except CocuError as error:
        assert "\n" not in str(error)
    finally:
        path.unlink()


@fuzz
@given(st.data())
def test_mentions(tmp_path, data):
    path = tmp_path / "m.arrow"
    write_mentions(Mentions(Ragged.from_lists([[1, 2], [], [3]] * 4, np.int32), np.ones(12, np.float32)), str(path))
    path.write_bytes(data.draw(damage(path.read_bytes())))
    try:
        opened = open_mentions(str(path))
    except CocuError as error:
        assert str(path) in str(error)
    else:
        assert opened.concepts.gather(np.arange(len(opened)))[0].max(initial=-1) < len(opened.concepts.values)
        assert len(opened.similarities) == len(opened.concepts.values)


@pytest.fixture
def forged(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "forged"))


@pytest.fixture(scope="module")
def indexes() -> dict[str, bytes]:
    """Indexes of 200 vectors of 8 dimensions."""
    import faiss

    vectors = normalise(np.random.default_rng(0).normal(size=(200, 8)))
    content = {}
    for factory in ("Flat", "IVF4,Flat", "IVF4,SQfp16", "HNSW8"):
        index = empty_index(factory, 8)
        index.train(vectors)
        index.add(vectors)
        content[factory] = faiss.serialize_index(index).tobytes()
    return content


def test_a_cut_index_is_refused_by_its_size(tmp_path):
    vectors = np.eye(8, dtype=np.float32)
    write_index(exact_index(vectors), str(tmp_path / "i.faiss"))
    write_mentions(
        Mentions(Ragged(np.arange(9), np.zeros(8, np.int32)), np.ones(8, np.float32)), str(tmp_path / "m.arrow")
    )
    whole = (tmp_path / "i.faiss").stat().st_size
    for name, read in (("i.faiss", lambda path: open_index(path, size=whole)), ("m.arrow", open_mentions)):
        content = (tmp_path / name).read_bytes()
        for length in range(0, len(content), 17):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(CocuError):
                read(str(tmp_path / name))
