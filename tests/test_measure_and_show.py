"""The two programs that look at a finished run."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from curation.base.ragged import Ragged
from curation.run.run import open_run
from curation.tools import measure, show
from curation.tools.quality import CUTS, MEASURES, by_image, means, quality, resampled, standard_errors, without
from curation.tools.truth import read_labelled


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
    run = open_run(str(finished))
    data = read_labelled(run, ["objects", "stuff"])
    results = measure.measure(measure.curate_all(run, data), data)
    assert list(results) == [
        ("vision", "cocu"),
        ("vision", "similarity"),
        ("vision", "support"),
        ("vision", "calibrated"),
        ("vision", "supported"),
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


def test_images_of_which_the_truth_says_nothing_do_not_lower_the_recall():
    assert quality(ragged([[1], [1]]), ragged([[1, 2], []]), ragged([[], []])).recall == 0.5
    assert np.isnan(quality(ragged([[1]]), ragged([[]]), ragged([[]])).recall)


def test_standard_errors_are_those_of_a_mean_and_pairs_are_drawn_alike():
    rng = np.random.default_rng(1)
    values = rng.random((400, 2))
    values[:100, 1] = np.nan  # images that do not count
    expected = [values[:, 0].std(ddof=1) / 20, values[100:, 1].std(ddof=1) / np.sqrt(300)]
    assert standard_errors(values) == pytest.approx(expected, rel=0.1)
    assert means(values) == pytest.approx([values[:, 0].mean(), values[100:, 1].mean()])

    shifted = resampled(values + 0.25) - resampled(values)
    assert shifted == pytest.approx(np.full_like(shifted, 0.25))
    assert np.isnan(standard_errors(np.full((3, 1), np.nan))).all()


def test_a_table_of_a_thousand_resamples_is_drawn_in_parts(monkeypatch):
    from curation.tools import quality as module

    values = np.random.default_rng(2).random((50, 3))
    whole = resampled(values)
    assert whole.shape == (1000, 3)
    monkeypatch.setattr(module, "AT_ONCE", 50 * 7)
    assert resampled(values) == pytest.approx(whole)  # the draws are the same, in whatever parts


@settings(max_examples=50, deadline=None)
@given(st.lists(scene, min_size=1, max_size=6), st.sets(st.integers(0, 9)))
def test_concepts_that_are_left_out_count_neither_as_found_nor_as_missed(scenes, ignored):
    rest = [[[c for c in part if c not in ignored] for part in scene] for scene in scenes]
    expected = by_image(*(ragged([scene[part] for scene in rest]) for part in range(3)))
    lists = [ragged([list(scene[part]) for scene in scenes]) for part in range(3)]
    counted = by_image(*(without(item, np.array(sorted(ignored), np.int64)) for item in lists))
    np.testing.assert_array_equal(counted, expected)
    assert expected.shape == (len(scenes), len(MEASURES))


def test_measure_prints_one_row_for_each_comparison_in_80_columns(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert measure.main([str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("caption", "vision", "text", "tagging")) for line in lines) == 9
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
