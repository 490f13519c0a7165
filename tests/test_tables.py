"""A new expansion, ranking or sampler is one row of its table: everything that names them works with it."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from curated import archived, curate
from rich.console import Console

from curation.archive import ConceptArchive, Sampler
from curation.archive.sampling import SAMPLERS, SamplingMethod
from curation.base.errors import CocuError
from curation.base.ragged import Ragged
from curation.config import options
from curation.expansion import EXPANSIONS, ExpansionMethod, listed
from curation.ranking import RANKINGS, Ranking
from curation.run.run import open_run
from curation.tools import measure, report, show, verify


def expand_first(anchors, mentions, texts, size):
    """The concept of the anchor's caption with the smallest id."""
    captions = anchors.captions
    return listed(Ragged.from_lists([sorted(row)[:1] for row in np.split(captions.values, captions.offsets[1:-1])]), 1)


@pytest.fixture
def new_rows(monkeypatch):
    """An expansion and a ranking that nothing else names."""
    first = ExpansionMethod(
        expand_first,
        lambda anchor: (set(sorted(anchor.caption)[:1]), {anchor.row: anchor.caption}),
        "the first concept of its caption",
    )
    doubled = Ranking(
        lambda entries: 2 * entries.similarity, lambda entry: 2 * entry.similarity, "twice the similarity"
    )
    monkeypatch.setitem(EXPANSIONS, "first", first)
    monkeypatch.setitem(RANKINGS, "doubled", doubled)


def test_a_new_expansion_and_a_new_ranking_work_everywhere(new_rows, world, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    assert curate(world, folder, "--archive.expansion", "first", "--archive.ranking", "doubled") == 0
    assert {len(concepts) for concepts in archived(folder).values()} == {1}

    assert "the first concept of its caption" in report.page_of(open_run(str(folder)))
    assert verify.main([str(folder)]) == 0
    assert measure.main([str(folder)]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["first", "cocu"] in rows
    assert ["vision", "doubled"] in rows
    shown = io.StringIO()
    show.show(open_run(str(folder)), [], 2, Console(file=shown, width=100))
    assert "█" in shown.getvalue()


def test_verify_sees_that_a_new_ranking_was_computed_wrongly(new_rows, world, finished, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    assert curate(world, folder, "--archive.ranking", "doubled") == 0
    wrong = RANKINGS["doubled"]._replace(plain=lambda entry: 3 * entry.similarity)
    monkeypatch.setitem(RANKINGS, "doubled", wrong)
    assert verify.main([str(folder)]) == 1
    assert "by the formula" in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_nearest_row(new_rows, world, tmp_path, capfd):
    assert curate(world, tmp_path / "out", "--archive.expansion", "frist") == 1
    assert "(did you mean 'first'?)" in capfd.readouterr().err


def test_a_new_sampler_draws(finished, monkeypatch):
    backwards = SamplingMethod(
        lambda archives, index: np.lexsort((-archives.positions, archives.owners)), "the last ones"
    )
    monkeypatch.setitem(SAMPLERS, "last", backwards)
    archive = ConceptArchive.open(finished)
    rows = [row for row in archive if len(row["concepts"]) >= 2][:5]
    sampler = Sampler("last", concepts=2, prompt="{c}")
    drawn = archive.prompts([row["key"] for row in rows], sampler)
    assert drawn == [[entry["concept"] for entry in row["concepts"][:-3:-1]] for row in rows]
    with pytest.raises(CocuError, match="is not one of cluster, top, weighted, caption, last"):
        Sampler("lost")


def test_help_names_every_row():
    lines = {key: text for key, _, text in options()}
    assert all(name in lines["archive.expansion"] for name in EXPANSIONS)
    assert all(name in lines["archive.ranking"] for name in RANKINGS)
    assert all(name in Sampler.__doc__ for name in SAMPLERS)
