"""The two programs that look at a finished run."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from curation.run.run import open_run
from curation.tools import measure, show
from curation.tools.measure import CUTS, Ragged, quality


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(np.cumsum([0, *map(len, rows)]), np.array([item for row in rows for item in row], np.int64))


def slow_quality(archives: list[list[int]], visible: list[list[int]], said: list[list[int]]) -> dict[str, object]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else float("nan")

    scenes = list(zip(archives, visible, said, strict=True))
    news = [([c for c in a if c not in s], v) for a, v, s in scenes]
    return {
        "recall": mean([len(set(a) & set(v)) / max(len(v), 1) for a, v, s in scenes]),
        "top": mean([len({*a[:3], *s} & set(v)) / max(len(v), 1) for a, v, s in scenes]),
        "precision": {k: mean([len(set(a[:k]) & set(v)) / min(k, len(a)) for a, v, s in scenes if a]) for k in CUTS},
        "new": {k: mean([len(set(n[:k]) & set(v)) / k for n, v in news if len(n) >= k]) for k in CUTS},
    }


scene = st.tuples(
    st.permutations(range(8)).flatmap(lambda order: st.integers(0, 8).map(lambda size: list(order[:size]))),
    st.sets(st.integers(0, 9), min_size=1, max_size=5).map(sorted),
    st.sets(st.integers(0, 9), max_size=3).map(sorted),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(scene, min_size=1, max_size=6))
def test_quality_equals_a_plain_computation(scenes):
    archives, visible, said = map(list, zip(*scenes, strict=True))
    found, expected = quality(*map(ragged, (archives, visible, said))), slow_quality(archives, visible, said)
    assert found.concepts == pytest.approx(np.mean([len(row) for row in archives]))
    assert found.recall == pytest.approx(expected["recall"])
    assert found.recall_top == pytest.approx(expected["top"])
    assert found.precision == pytest.approx(expected["precision"], nan_ok=True)
    assert found.new_precision == pytest.approx(expected["new"], nan_ok=True)


def test_measure_of_caption_archives_is_what_the_captions_say(finished):
    results = measure.measure(open_run(str(finished)), ["objects", "stuff"])
    assert list(results) == [
        ("vision", "cocu"),
        ("vision", "similarity"),
        ("vision", "support"),
        ("vision", "calibrated"),
        ("vision", "none"),
        ("caption", "cocu"),
        ("text", "cocu"),
        ("tagging", "similarity"),
    ]
    caption = results["caption", "cocu"]
    assert caption.precision[1] == 1  # the captions of this world tell the truth
    assert np.isnan(caption.new_precision[1])
    assert caption.recall == pytest.approx(caption.recall_top)
    assert results["vision", "cocu"].recall > caption.recall
    assert results["tagging", "similarity"].concepts == 4


def test_measure_prints_one_row_for_each_comparison_in_80_columns(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert measure.main([str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("caption", "vision", "text", "tagging")) for line in lines) == 8
    assert not [line for line in lines if "…" in line or len(line) > 80]


def test_measure_says_which_sample_has_no_truth(finished, capsys):
    assert measure.main([str(finished), "--fields", "things"]) == 1
    assert "key 000000 has no json sidecar with things" in capsys.readouterr().err


def printed(finished, *keys: str) -> str:
    out = io.StringIO()
    show.show(open_run(str(finished)), list(keys), 2, Console(file=out, width=120))
    return out.getvalue()


def test_show_prints_what_the_archive_holds(finished):
    row = pq.read_table(finished / "archives" / "00001.parquet").to_pylist()[5]
    text = printed(finished, row["key"])
    assert f"caption     {row['caption']}" in text
    assert f"1.000  (itself) {row['caption']}" in text
    concepts = [line.split("█")[0].strip() for line in text.splitlines() if "█" in line]
    assert concepts == [item["concept"] for item in row["concepts"]]
    assert f"{row['concepts'][0]['score']:.3f}" in text


def test_show_prints_the_first_samples_without_keys_and_keeps_the_order_of_keys(finished):
    assert [line.split()[0] for line in printed(finished).splitlines() if "row" in line] == ["000000", "000001"]
    text = printed(finished, "020003", "000001")
    assert text.index("020003") < text.index("000001")


def test_show_names_a_key_that_is_not_there(finished, capsys):
    assert show.main([str(finished), "nokey"]) == 1
    assert "no sample has the key nokey" in capsys.readouterr().err
    assert show.main([str(finished / "nowhere")]) == 1
    assert "no manifest.json" in capsys.readouterr().err
