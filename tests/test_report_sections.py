"""Sections of the page at the end of a run: axis and bars, galleries, duplicates, a map."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from report_page import Page, number, rows
from tiny_world import ROWS, SHARDS

from curation.run.run import open_run
from curation.tools import report
from curation.tools.report import __main__ as program
from curation.tools.report.charts import ticks


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page(finished / "report.html")


def test_the_histogram_has_an_axis_of_round_numbers(page):
    drawn = [(float(path["d"].split()[1].partition("H")[0])) for path in page.of("path", **{"class": "tick"})]
    labels = [int(number) for number in re.findall(r'<text class="tick"[^>]*>([\d,]+)<', page.source)]
    largest = max(number(row[column]) for row in page.cells["histogram-table"][1:] for column in (1, 3))
    assert labels == ticks(largest)
    np.testing.assert_allclose(drawn, [210 - 210 * label / largest for label in labels], atol=0.06)
    for most in (1, 2, 4, 5, 9, 72, 1287, 10**6):
        assert 1 <= len(ticks(most)) <= 5
        assert max(ticks(most)) <= most < 2 * max(ticks(most))


def test_bars_of_scores_begin_at_the_lowest_and_end_at_the_highest(page):
    bars = re.findall(r'style="width:([\d.]+)%"></span></span><span class="score">([\d.]+)<', page.source)
    widths, scores = np.array(bars, float).T
    least, most = scores.min(), scores.max()
    assert f"Bars of scores begin at {least:.2f} and end at {most:.2f}" in page.words
    np.testing.assert_allclose(widths, 3 + 97 * (scores - least) / (most - least), atol=1.5)
    assert (widths.min(), widths.max()) == (3, 100)


def test_candidates_are_called_so(page):
    assert "it holds candidates that the caption leaves out" in page.words
    assert "gained" not in page.words


def test_galleries_show_the_surest_archives_whose_captions_leave_a_concept_out(page, finished):
    omitted = {}
    for row in rows(finished, "archives"):
        for entry in row["concepts"]:
            if not re.search(rf"\b{entry['concept']}s?\b", row["caption"].lower()):
                omitted.setdefault(entry["concept"], []).append((round(entry["score"], 2), row["caption"]))
    section = page.source.split('<h2 id="galleries">')[1].split("</section>")[0]
    shown = section.split("<div><h3>")[1:]
    names = [text.partition(" <")[0] for text in shown]
    counts = [len(omitted[name]) for name in names]
    assert counts == sorted((len(archives) for archives in omitted.values() if len(archives) >= 3), reverse=True)[:12]
    for name, count, part in zip(names, counts, shown, strict=True):
        assert f"{count} archives" in part
        scores = [float(score) for score in re.findall(r'class="cosine">([\d.]+)<', part)]
        assert scores == sorted((score for score, _ in omitted[name]), reverse=True)[:6]
        assert set(re.findall(r'alt="([^"]+)"', part)) <= {caption for _, caption in omitted[name]}


def test_a_map_is_drawn_where_one_is_asked_for(finished, tmp_path, monkeypatch, capsys):
    from sklearn.decomposition import PCA

    from curation.tools.report.map import principal_components

    run = open_run(str(finished))
    assert 'id="map"' not in report.page_of(run)
    drawn = report.page_of(run, "pca")
    assert drawn.count("<circle") == SHARDS * ROWS
    best = [row["concepts"][0]["concept"] for row in rows(finished, "archives") if row["concepts"]]
    assert all(f"<title>{name}: " in drawn for name in best)

    vectors = np.random.default_rng(0).normal(size=(40, 7)) * np.arange(1, 8)
    ours, theirs = principal_components(vectors), PCA(2).fit_transform(vectors)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)

    monkeypatch.setitem(sys.modules, "umap", None)
    assert program.main([str(finished), "--map", "umap"]) == 1
    assert "umap-learn is not installed; run pip install umap-learn, or use --map pca" in capsys.readouterr().err


def test_umap_is_used_where_it_is_installed(finished, monkeypatch):
    class UMAP:
        def __init__(self, **settings):
            assert settings == {"metric": "cosine", "random_state": 0}

        def fit_transform(self, vectors):
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    assert "UMAP of the embeddings of 72 images" in report.page_of(open_run(str(finished)), "umap")
