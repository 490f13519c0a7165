"""Heat maps with a scale that can be read, and pictures of evaluation that say how good they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from evaluation import pictures
from evaluation.benchmark import Benchmark, Layout
from evaluation.evaluate import Prediction
from evaluation.panels import GAP, LINE, Entry, Panel, lines, side_by_side
from evaluation.segment import main

IMAGE = Image.new("RGB", (60, 40), "grey")
HEAT = {"dog": np.linspace(0.1, 0.2, 2400).reshape(40, 60), "grass": np.linspace(0.15, 0.4, 2400).reshape(40, 60)}


@pytest.fixture
def panels(monkeypatch):
    """The panels of the last picture."""
    seen = []
    monkeypatch.setattr(pictures, "side_by_side", lambda panels: seen.append(panels) or side_by_side(panels))
    return seen


@pytest.mark.parametrize(
    ("per_word", "bars"), [(False, ["0.100 to 0.400"] * 2), (True, ["0.100 to 0.200", "0.150 to 0.400"])]
)
def test_a_bar_shows_what_the_colours_mean_and_cosines_have_three_decimals(per_word, bars, panels):
    pictures.heatmaps(IMAGE, HEAT, per_word)
    _, *words = panels[0]
    assert [panel.title for panel in words] == ["dog", "grass"]
    assert [panel.legend[0].text for panel in words] == bars
    assert [panel.legend[1].text for panel in words] == ["cosine 0.100 to 0.200", "cosine 0.150 to 0.400"]
    hottest = [tuple(np.asarray(panel.picture)[-1, -1].tolist()) for panel in words]
    ends = [panel.legend[0].bar[-1] for panel in words]
    assert np.abs(np.array(hottest[1]) - ends[1]).max() <= 2  # the warmest pixel has the bar's last colour
    assert (np.abs(np.array(hottest[0]) - ends[0]).max() <= 2) == per_word


def test_a_bar_is_drawn_over_the_width_of_its_picture_and_the_text_below_it():
    bar = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    panel = Panel("x", Image.new("RGB", (300, 20)), [Entry(None, "0 to 1", bar), Entry(None, "more")])
    assert lines(panel) == 3
    sheet = np.asarray(side_by_side([panel]))
    top = GAP + LINE + 20 + GAP // 2
    row = sheet[top + 8, GAP : GAP + 300]
    assert [tuple(row[at].tolist()) for at in (0, 99, 100, 199, 200, 299)] == [bar[n] for n in (0, 0, 1, 1, 2, 2)]
    assert (sheet[top + LINE : top + 2 * LINE] != 255).any() and sheet.shape[0] == top + 3 * LINE + GAP


def test_names_with_a_line_break_are_drawn_on_one_line():
    """Class names come from YAML files, keys from tars; Pillow measures no text of several lines."""
    panels = [[Panel(title, IMAGE, [Entry(None, title)])] for title in ("a fox\nred", "a fox red", "a")]
    broken, whole, short = (np.asarray(side_by_side(row)) for row in panels)
    assert np.array_equal(broken, whole) and not np.array_equal(whole, short)


def test_a_picture_says_its_own_miou(panels):
    rng = np.random.default_rng(2)
    labels, predicted = (rng.integers(0, 3, (40, 60)) for _ in range(2))
    benchmark = Benchmark("b", Layout("", "{id}", "{id}"), False, 40, 40, 40, ("a", "b", "c", "d"))
    labels[:5] = 255
    pictures.comparison(Prediction(0, "x", IMAGE, labels, predicted, None), benchmark)
    kept = labels != 255
    expected = 100 * jaccard_score(labels[kept], predicted[kept], average="macro")
    assert panels[0][2].title == f"prediction, mIoU {expected:.1f}"
    pictures.comparison(Prediction(0, "x", IMAGE, np.full((40, 60), 255), predicted, None), benchmark)
    assert panels[1][2].title == "prediction"  # nothing of it is evaluated


def test_per_word_is_about_heat_maps(huggingface, tmp_path, capsys):
    IMAGE.save(tmp_path / "a.png")
    arguments = [
        str(tmp_path / "a.png"),
        "--words",
        "dog, grass",
        "--checkpoint",
        str(huggingface[1]),
        "--device",
        "cpu",
    ]
    arguments += ["-o", str(tmp_path / "out.png"), "--per-word"]
    assert main([*arguments, "--heatmap"]) == 0
    assert main(arguments) == 1
    assert "per-word: is about the colours of --heatmap" in capsys.readouterr().err
