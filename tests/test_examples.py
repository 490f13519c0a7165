"""The worked examples of examples/, each run at tiny scale and checked against something else."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmark_worlds import photo
from PIL import Image
from tiny_world import COLOURS, GROUNDS

from curation.archive import ConceptArchive
from pipelines.curate import main as curate
from segmenters.checkpoint import save
from segmenters.groupvit import MEAN, STD
from segmenters.text import tokenize

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_the_sql_of_the_docs_counts_by_concept(finished, monkeypatch, tmp_path):
    """What a caption mentions is no substring of it: a postcard is no car."""
    import duckdb

    (block,) = re.findall(r"```python\nimport duckdb\n(.*?)```", (ROOT / "docs" / "archives.md").read_text(), re.DOTALL)
    (query,) = re.findall(r'f"""(.*?)"""', block, re.DOTALL)
    folder = shutil.copytree(finished, tmp_path / "out")
    for kind in ("archives", "embeddings"):
        for path in sorted((folder / kind).glob("*.parquet")):
            table = pq.ParquetFile(path).read_row_group(0)
            number = table.schema.get_field_index("caption")
            captions = pa.array([f"{text.as_py()}: boating, leaflet, pineapple" for text in table["caption"]])
            pq.write_table(table.set_column(number, "caption", captions), path)
    found = duckdb.sql(query.replace("{RUN}", str(folder))).fetchall()

    images: Counter[str] = Counter()
    for row in ConceptArchive.open(finished):
        mentioned = [name for name in (*COLOURS, *GROUNDS) if name in row["caption"]]  # no name is part of another one
        images.update(entry["concept"] for entry in row["concepts"] if entry["concept"] not in mentioned)
    assert {concept: count for concept, count, _ in found} == images


def test_sql_finds_what_captions_omit(finished, monkeypatch):
    import duckdb

    monkeypatch.chdir(finished)
    results = []
    with duckdb.connect() as session:
        for statement in duckdb.extract_statements((EXAMPLES / "omitted.sql").read_text()):
            result = session.execute(statement.query)
            results += [result.fetchall()] if statement.type == duckdb.StatementType.SELECT else []
    most, counts, pairs, certain = results

    images, agree, missing, beside = (Counter() for _ in range(4))
    for row in ConceptArchive.open(finished):
        mentioned = [name for name in (*COLOURS, *GROUNDS) if name in row["caption"]]  # no name is part of another one
        omitted = [entry for entry in row["concepts"] if entry["concept"] not in mentioned]
        images.update(entry["concept"] for entry in omitted)
        agree.update(entry["concept"] for entry in omitted if entry["support"] >= 2)
        missing[len(omitted)] += 1
        beside.update((name, entry["concept"]) for name in mentioned for entry in omitted)
    assert {name: count for name, count, *_ in most} == images
    assert {name: count for name, _, count, *_ in most if count} == agree
    assert [count for _, count, *_ in most] == sorted(images.values(), reverse=True)
    assert dict(counts) == missing
    assert [count for *_, count in pairs] == sorted(beside.values(), reverse=True)[:10]
    assert all(beside[says, omits] == count for says, omits, count in pairs)
    assert all(omits not in caption for caption, omits, _ in certain) and len(certain) == 5


def test_the_tagger_learns_and_names_what_it_sees(example, finished, capsys):
    model = example("tagger").main(str(finished), epochs=3)
    text = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) == 3 and losses[2] < losses[0]
    assert len(re.findall(r"^'A photo of .*': (?:[\w ]+ [01]\.\d\d(?:, )?){4}$", text, re.MULTILINE)) == 5
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, len(COLOURS) + len(GROUNDS))


def test_open_clip_trains_on_enriched_captions(finished, tiny_clip, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    command = ["bash", str(EXAMPLES / "open_clip.sh"), str(out), f"local-dir:{tiny_clip}"]
    command += ["--epochs", "1", "--batch-size", "16", "--workers", "0", "--device", "cpu", "--log-every-n-steps", "1"]
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "[64/72 (100%)]" in run.stderr + run.stdout
    trained = torch.load(out / "open_clip" / "enriched" / "checkpoints" / "epoch_1.pt", weights_only=True)
    assert trained["epoch"] == 1
    titles = [line.split("\t")[1] for line in (out / "export" / "csv" / "train.csv").read_text().splitlines()[1:]]
    assert len(titles) == 72 and any(", with " in title for title in titles)


def test_transformers_segments_as_our_model_does(example, groupvit, tmp_path, capsys):
    save(groupvit, tmp_path / "ours")
    photo(tmp_path / "picture.png", 3, (64, 64))
    words = ["sea", "snow"]  # this random model sees some of each in this picture
    labels = example("transformers_groupvit").main(
        str(tmp_path / "ours"), str(tmp_path / "picture.png"), ", ".join(words), str(tmp_path / "out.png")
    )
    with Image.open(tmp_path / "picture.png") as picture, torch.no_grad():
        pixels = torch.from_numpy(np.asarray(picture) / np.float32(255) - np.float32(MEAN)) / torch.tensor(STD)
        encoded = groupvit.encode_groups(pixels.permute(2, 0, 1)[None])
        texts = groupvit.encode_text(tokenize([f"a photo of a {word}." for word in words]))
    groups = torch.nn.functional.normalize(encoded.groups, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    masks = torch.nn.functional.interpolate(encoded.masks(), (64, 64), mode="bilinear")
    expected = torch.einsum("bgc,bghw->bchw", groups, masks)[0].argmax(0)
    assert labels.shape == (64, 64)
    assert len(expected.unique()) > 1
    assert (labels == expected).float().mean() > 0.999
    assert Image.open(tmp_path / "out.png").size == (64, 64)
    assert "of the picture" in capsys.readouterr().out


def test_embeddings_of_clip_retrieval_become_archives(finished, world, tiny_clip, tmp_path, monkeypatch):
    folder = tmp_path / "embeddings"
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    for number, path in enumerate(sorted((finished / "embeddings").glob("*.parquet"))):
        table = pq.read_table(path)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", np.array(table["embedding"].to_pylist(), np.float16))
        columns = pa.table({"key": table["key"], "caption": table["caption"]})
        pq.write_table(columns, folder / "metadata" / f"metadata_{number}.parquet")
    monkeypatch.setenv("EMBEDDINGS", str(folder))
    options = {
        "--data": EXAMPLES / "clip_retrieval.yaml",
        "--output": tmp_path / "out",
        "--runner": "inprocess",
        "--encoder.model": f"local-dir:{tiny_clip}",
        "--encoder.pretrained": "null",
        "--encoder.precision": "fp32",
        "--retrieval.neighbors": 4,
        "--retrieval.duplicates": "keep",
        "--vocabulary.source": world.parent / "concepts.txt",
        "--vocabulary.min_count": 0,
    }
    assert curate([str(item) for pair in options.items() for item in pair]) == 0
    imported = ConceptArchive.open(tmp_path / "out")
    base = ConceptArchive.open(finished)
    assert len(imported) == len(base)
    for row in base:
        theirs = {entry["concept"]: entry["score"] for entry in imported[row["key"]]["concepts"]}
        assert theirs == pytest.approx({entry["concept"]: entry["score"] for entry in row["concepts"]}, rel=1e-3)
