"""Any factory string of FAISS works, or is refused in one line before anything is trained."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from curated import curate

from curation.base.errors import CocuError
from curation.index.build import empty_index, encode, exact_index, fill, fills_in_parts, train, write_index
from curation.index.neighbours import nearest
from curation.index.open import open_index, searchable, set_search
from curation.index.trial import try_factory, try_form

WORKING = [
    ("Flat", 1),
    ("IVF4,Flat,RFlat", 1),
    ("IVF4,SQ8,Refine(SQfp16)", 0.95),
    ("IVF4,PQ4x4fs", 0.2),
    ("IVF4,PQ4x4fsr,RFlat", 0.3),
    ("PQ4x4fs", 0.2),
    ("IVF4,RQ2x4", 0.2),
    ("PCA6,IVF4,Flat", 0.5),
    ("IVF4,RaBitQ", 0.2),
    ("HNSW8_SQ8", 0.9),
]


@pytest.mark.parametrize(("factory", "share"), WORKING)
def test_what_is_let_through_finds_neighbours(factory: str, share: float, vectors: np.ndarray) -> None:
    try_form(factory)
    try_factory(factory, vectors.shape[1])
    index = empty_index(factory, 8)
    train(index, vectors, factory)
    if fills_in_parts(index):
        fill(index, lambda: [encode(index, part) for part in np.split(vectors, 2)])
    else:
        for part in np.split(vectors, 2):
            index.add(part)
    if faiss.try_extract_index_ivf(index) is not None:
        set_search(index, "nprobe=4")
    ids, _ = nearest(searchable(index), vectors, np.arange(240), 6, True)
    expected = np.argsort(-(vectors @ vectors.T), axis=1)[:, :6]
    hits = [len(set(a) & set(b)) / 6 for a, b in zip(ids.tolist(), expected.tolist(), strict=True)]
    assert np.mean(hits) >= share


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("IDMap,Flat", "add_with_ids"),
        ("IVF4,Flat,IDMap", "add_with_ids"),
        ("NSG16", "incremental"),
        ("LSH", "METRIC_L2"),
        ("HNSW8_PQ4", "finds no cosines"),
        ("IMI2x2,Flat", "inner prod"),
        ("IVFF,Flat", "could not parse"),
        ("PQ7", ""),
    ],
)
def test_what_is_refused_is_refused_in_one_line(factory: str, reason: str) -> None:
    with pytest.raises(CocuError, match=r"^retrieval\.index: ") as caught:
        if factory == "PQ7":
            try_factory(factory, 8)
        else:
            try_form(factory)
    line = str(caught.value)
    assert "\n" not in line
    assert factory in line
    assert reason in line
    assert ".cpp" not in line


@pytest.mark.parametrize("factory", ["IVF65536,Flat", "IVF16k,SQ8", "PQ4x14", "OPQ8,IVF4,PQ8x4fs"])
def test_data_that_a_trial_has_not_are_not_asked_for(factory: str) -> None:
    try_form(factory)


def test_a_trial_is_quick_and_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    try_factory("IVF1024,PQ8", 64)
    assert capfd.readouterr() == ("", "")


def test_a_small_index_that_was_opened_before_does_not_matter(vectors: np.ndarray, tmp_path: Path) -> None:
    write_index(exact_index(vectors[:9]), str(tmp_path / "image.faiss"))
    open_index(str(tmp_path / "image.faiss"))  # FAISS believes no file that is larger from now on
    try_form("Flat")


@pytest.mark.parametrize("factory", ["IDMap,Flat", "NSG16"])
def test_a_run_says_it_before_anything_is_embedded(factory, world, tmp_path, capfd) -> None:
    assert curate(world, tmp_path / "out", "--retrieval.index", factory) == 1
    assert f"retrieval.index: {factory} does not work here" in capfd.readouterr().err
    assert not (tmp_path / "out" / "embeddings").exists()


# --- a recall that is not reached -----------------------------------------------------------------------------------------


def test_an_explicit_index_below_the_recall_is_said(world, finished, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    folder = shutil.copytree(finished, tmp_path / "out")
    low = ["--retrieval.index", "IVF8,SQ4", "--retrieval.search", "nprobe=1"]
    assert curate(world, folder, *low) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "recall of the index" in line]
    assert "below 0.95" in line
    assert "\x1b[31m" in line.replace("\x1b[1;31m", "\x1b[31m")


def test_auto_below_the_recall_is_an_error_with_the_remedy(world, finished, tmp_path, capfd, monkeypatch) -> None:
    from curation.run.stages import index as stages

    folder = Path(shutil.copytree(finished, tmp_path / "out"))
    notes = folder / "index" / "index.json"
    notes.write_text(re.sub(r'"tune index"', '"tuned before"', notes.read_text()))
    (folder / "manifest.json").unlink()
    monkeypatch.setattr(stages, "_is_exact", lambda merged: False)
    monkeypatch.setattr(stages.HeldOut, "least_search", lambda *_, **__: (None, 0.9087))
    assert curate(world, folder) == 1
    error = capfd.readouterr().err
    assert "retrieval.recall: Flat finds 0.908 of the true neighbours" in error
    assert "raise retrieval.memory" in error
    assert "lower retrieval.recall to 0.908" in error
