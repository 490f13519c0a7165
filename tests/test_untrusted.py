"""A folder of archives from elsewhere is data: nothing in it is expanded, followed or believed before it is checked."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import NAMES, curate
from fsspec.implementations.memory import MemoryFileSystem
from tiny_world import write_world

from curation import encoder, samples
from curation.archive import ConceptArchive
from curation.base import files, parquet
from curation.base.errors import CocuError, InputError
from curation.base.ragged import Ragged
from curation.config import load
from curation.mentions import Mentions, open_mentions, write_mentions
from curation.run import inputs
from curation.run.run import Run, open_run
from curation.run.texts import caption_part, given_captions
from curation.samples import Shard
from curation.tools import export, measure, report, show, verify
from training.datamodule import ArchiveDataModule


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "deep" / "er" / "copy"))


def forge(folder: Path, **values) -> Path:
    """Change top-level values of the manifest; ``config`` is merged."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] |= values.pop("config", {})
    (folder / "manifest.json").write_text(json.dumps(manifest | values))
    return folder


# --- the environment ------------------------------------------------------------------------------------------------------


def test_nothing_is_expanded_from_a_manifest(copy, monkeypatch):
    monkeypatch.setenv("COCU_TOKEN", "SECRET")
    paths = ["https://evil.example/${COCU_TOKEN}/0.tar", "$COCU_TOKEN/1.tar", "~/2.tar"]
    config = {"shards": paths, "vocabulary": {"source": "package:json/${COCU_TOKEN}.txt"}}
    forge(copy, paths=paths, config=config)
    run = open_run(str(copy), allow_remote=True)
    found = [shard.path for shard in run.shards] + [run.config.vocabulary.source, *run.config.shards]
    found += [source.path for source in ConceptArchive.open(copy, allow_remote=True).sources]
    assert not [path for path in found if "SECRET" in path]
    assert found[0] == "https://evil.example/${COCU_TOKEN}/0.tar"
    assert found[1].endswith("copy/$COCU_TOKEN/1.tar") and found[2].endswith("copy/~/2.tar")


# --- addresses ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """Counts whatever would be opened elsewhere."""
    asked = []
    for name in ("info", "_open", "ls", "exists", "glob"):
        monkeypatch.setattr(MemoryFileSystem, name, lambda self, path, *rest, **more: asked.append(path) or 1 / 0)
    return asked


def test_addresses_in_a_local_folder_are_not_opened_unasked(copy, offline, tmp_path, capsys):
    forge(copy, paths=[f"memory://evil/{name}.tar" for name in NAMES])
    assert export.main([str(copy), "--format", "csv", "--to", str(tmp_path / "csv")]) == 1
    assert "memory://evil/00000.tar" in (error := capsys.readouterr().err) and "--allow-remote" in error

    trainer = ArchiveDataModule([str(copy)])
    with pytest.raises(CocuError, match=r"--data\.allow_remote true"):
        trainer.setup("fit")
    assert "--allow-remote" in report.page_of(open_run(str(copy)))  # the page goes without pictures
    for tool in (verify.main, measure.main):
        assert tool([str(copy)]) == 1
        assert "--allow-remote" in capsys.readouterr().err

    assert show.main([str(copy)]) == 0  # needs no tars
    assert export.main([str(copy), "--format", "jsonl", "--to", str(tmp_path / "lines")]) == 0
    assert not offline


def test_a_remote_run_to_retrieve_from_is_not_opened_unasked(copy, offline, capsys):
    forge(copy, config={"retrieval": {"data": "memory://evil/run"}})
    assert show.main([str(copy)]) == 1
    assert "--allow-remote" in capsys.readouterr().err
    assert not offline


def test_embeddings_of_captions_elsewhere_are_not_looked_for_unasked(copy, offline):
    part = Shard(0, "0", "memory://evil/img_emb/img_emb_0.npy")
    opened = dataclasses.replace(open_run(str(copy)), shards=(part,))
    for look in (lambda: caption_part(opened, part), lambda: given_captions(opened, part, ["a"])):
        with pytest.raises(InputError, match=r"memory://evil/img_emb/img_emb_0\.npy: .* add --allow-remote"):
            look()
    assert not offline
    asked = dataclasses.replace(opened, allow_remote=True)
    assert caption_part(asked, part) == "memory://evil/text_emb/text_emb_0.npy"


def test_weights_on_a_hub_are_not_fetched_unasked(copy, world, capsys, monkeypatch):
    def refuse(config):
        raise AssertionError("it was loaded")

    monkeypatch.setattr(encoder, "load", refuse)
    manifest = json.loads((copy / "manifest.json").read_text())
    named = manifest["config"]["encoder"] | {"model": "hf-hub:evil/model"}
    forge(copy, config={"encoder": named}, paths=[str(world.parent / f"{name}.tar") for name in NAMES])
    assert measure.main([str(copy)]) == 1
    error = capsys.readouterr().err
    assert "hf://evil/model" in error
    assert "--allow-remote" in error


def test_addresses_are_opened_when_that_is_asked_for(finished, copy, world, tmp_path):
    for name in NAMES:
        with files.atomic_write(f"memory://asked/{name}.tar") as stream:
            stream.write((world.parent / f"{name}.tar").read_bytes())
    forge(copy, paths=[f"memory://asked/{name}.tar" for name in NAMES])
    try:
        options = ["--format", "csv", "--to", str(tmp_path / "csv"), "--allow-remote"]
        assert export.main([str(copy), *options]) == 0
        trainer = ArchiveDataModule([str(copy)], allow_remote=True, batch_size=2, workers=0)
        trainer.setup("fit")
        assert len(trainer.shards) == len(NAMES)
        assert "--allow-remote" not in report.page_of(open_run(str(copy), allow_remote=True))

        # what lies beside a remote folder was asked for with it
        MemoryFileSystem().put(str(copy), "/asked/out", recursive=True)
        assert len(ConceptArchive.open("memory://asked/out").sources) == len(NAMES)
    finally:
        files.remove("memory://asked")


# --- secrets --------------------------------------------------------------------------------------------------------------


def everything_in(folder: Path) -> bytes:
    """All bytes of a folder, and all text of its Parquet files."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for path in folder.rglob("*.parquet"):
        content += str(pq.read_table(path).to_pylist()).encode() + str(pq.read_metadata(path).metadata).encode()
    return content


@pytest.fixture
def signed(world, tiny_clip, tmp_path, monkeypatch):
    """A data set at addresses with secrets, one of which leads to no tar."""
    served = Path(shutil.copytree(world.parent, tmp_path / "served"))
    (served / f"{NAMES[2]}.tar").write_bytes(b"not a tar")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://me:SECRET@127.0.0.1:{server.server_port}"
    monkeypatch.setattr(samples, "matching", list)  # how addresses are found is another matter
    yield write_world(
        tmp_path / "served" / "signed.yaml", tiny_clip, shards=[f"{address}/{name}.tar?sig=SECRET" for name in NAMES]
    )
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, whatever the query, and logs nothing."""

    def log_message(self, *arguments):
        pass


def test_secrets_in_addresses_are_written_and_printed_nowhere(signed, tmp_path, capfd):
    assert curate(signed, tmp_path / "out") == 1  # the last shard is no tar
    assert curate(signed, tmp_path / "out", "--on_error", "skip", "--dry-run") == 0
    assert curate(signed, tmp_path / "out", "--on_error", "skip") == 0
    printed = capfd.readouterr()
    assert "SECRET" not in printed.out + printed.err
    assert b"SECRET" not in everything_in(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text().count("data:image") > 10  # pictures were read all the same

    # the folder alone cannot read them again, and says so
    for tool in (verify.main, measure.main):
        assert tool([str(tmp_path / "out"), "--allow-remote"]) == 1
        assert "recorded in" in (error := capfd.readouterr().err) and "which may be a secret" in error
    assert "SECRET" not in report.page_of(open_run(str(tmp_path / "out"), allow_remote=True))
    assert show.main([str(tmp_path / "out")]) == 0


def test_another_signature_of_the_same_file_is_the_same_request(world, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs.files, "version", lambda path: {"size": 1, "mark": "same"})
    shutil.copy(world.parent / "concepts.txt", tmp_path)
    requests = set()
    for signature in ("one", "two"):
        address = f"https://host/0.tar?sig={signature}"
        config = load(str(write_world(tmp_path / "a.yaml", tiny_clip, shards=[address])))
        requests.add(inputs.request(Run(config, str(tmp_path / "out"), (Shard(0, "0", address),))))
    assert len(requests) == 1


# --- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a/b", "..", "", "a\\b", "a\0b", "\x1b[2J", "\ud800", 3, None, ["a"], "x" * 300]
)
def test_names_of_shards_are_checked_before_they_become_paths(name, copy, tmp_path, capsys):
    forge(copy, shards=[name, *NAMES[1:]])
    before = set(tmp_path.rglob("*"))
    for tool in (["--format", "jsonl"], ["--format", "webdataset"], ["--format", "csv"]):
        assert export.main([str(copy), *tool, "--to", str(copy / "a" / "b")]) == 1
        error = capsys.readouterr().err
        assert "shards: " in error and "cannot be the name of a file" in error and error.count("\n") == 1
    assert show.main([str(copy)]) == 1
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": NAMES * 2}, "a name occurs twice"),
        ({"shards": "00000"}, "not a list of names"),
        ({"paths": ["a.tar"]}, "not one for each of 3 shards"),
        ({"paths": [1, 2, 3]}, "one is not a path"),
        ({"paths": ["x" * 300, "\ud800", "a\0b"]}, "one is not a path"),
        ({"counts": {"rows": "many"}}, "counts.rows: 'many' is not a count"),
        ({"counts": []}, "counts: not a mapping"),
        ({"config": {"image": ["jpg"]}}, "config.image"),
    ],
)
def test_a_forged_manifest_is_refused_in_one_line(values, message, copy, capsys):
    forge(copy, **values)
    for tool in (show.main, verify.main, measure.main):
        assert tool([str(copy)]) == 1
        error = capsys.readouterr().err
        assert "manifest.json: " in error and message in error and error.count("\n") == 1


# --- files of arrays ------------------------------------------------------------------------------------------------------


def test_a_small_file_that_says_it_holds_gigabytes_is_not_read(copy, monkeypatch, capsys):
    monkeypatch.setattr(parquet, "MOST_HELD", 1 << 20)  # a file that takes no time to write
    path = copy / "archives" / "00001.parquet"
    table = pa.table({name: np.zeros(1 << 20) for name in ("key", "caption", "concepts")})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=1 << 20)
    assert path.stat().st_size < 1 << 15
    assert show.main([str(copy), "nokey"]) == 1
    assert "not a file of a curation run" in capsys.readouterr().err


OFFSETS, CONCEPTS = np.array([0, 2, 2, 3], np.int64), np.array([1, 2, 0], np.int32)
SIMILARITIES = np.array([0.5, 0.25, 1], np.float32)


@pytest.mark.parametrize(
    ("array", "forged"),
    [
        (OFFSETS, [0, 3, 2, 3]),
        (OFFSETS, [0, 2, 2, 1 << 40]),
        (OFFSETS, [0, 2, 1 << 40, 3]),
        (OFFSETS, [-5, 2, 2, 3]),
        (OFFSETS, [1, 2, 2, 3]),
        (CONCEPTS, [1, -2, 0]),
        (SIMILARITIES, [0.5, np.nan, 1]),
    ],
)
def test_mentions_whose_lists_do_not_fit_are_refused(array, forged, tmp_path):
    path = tmp_path / "mentions.arrow"
    write_mentions(Mentions(Ragged(OFFSETS, CONCEPTS), SIMILARITIES), str(path))
    assert open_mentions(str(path)).width == 3

    content = path.read_bytes()
    assert array.tobytes() in content
    path.write_bytes(content.replace(array.tobytes(), np.array(forged, array.dtype).tobytes()))
    with pytest.raises(CocuError, match=r"mentions\.arrow"):
        open_mentions(str(path))


@pytest.mark.parametrize(
    "kinds", [[pa.int32()], [pa.int64(), pa.float32()], [pa.int32(), pa.float64()], [pa.string()] * 2]
)
def test_mentions_of_other_types_are_refused(kinds, tmp_path):
    path = str(tmp_path / "mentions.arrow")
    batch = pa.record_batch([pa.array([[]], pa.large_list(kind)) for kind in kinds], names=list("ab")[: len(kinds)])
    with pa.OSFile(path, "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(CocuError, match=r"mentions\.arrow: not what a curation run notes"):
        open_mentions(path)


def test_an_index_of_something_else_is_refused(copy, capsys):
    import faiss

    path, notes = copy / "index" / "image.faiss", copy / "index" / "index.json"
    whole = faiss.read_index(str(path))
    vectors = faiss.rev_swig_ptr(whole.get_xb(), whole.ntotal * whole.d).reshape(whole.ntotal, -1)
    for array, message in ((vectors[:-1], "holds 71 vectors"), (vectors[:, :-1], "of 31 dimensions")):
        index = faiss.IndexFlatIP(array.shape[1])
        index.add(np.ascontiguousarray(array))
        faiss.write_index(index, str(path))
        values = json.loads(notes.read_text())
        values["index"]["bytes"] = path.stat().st_size
        notes.write_text(json.dumps(values))
        assert show.main([str(copy)]) == 1
        assert message in capsys.readouterr().err
        values["index"] |= {"rows": array.shape[0], "dimension": array.shape[1]}  # both forged
        notes.write_text(json.dumps(values))
        assert show.main([str(copy)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
