"""Figures of the experiments: whiskers only where several seeds ran, and names beside what they name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be written."""
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    return kept


def curve(*miou: float) -> SimpleNamespace:
    """A run of which only the mIoU of two classes matters."""
    scores = np.array(miou)
    return SimpleNamespace(
        steps=np.arange(1, 1 + len(miou)), miou=scores, iou=np.stack([scores, scores], 1), losses=None
    )


def runs(name: str, *curves: SimpleNamespace, group: str = "arm") -> SimpleNamespace:
    return SimpleNamespace(arm=SimpleNamespace(name=name, title=name, group=group), curves=list(curves))


def is_beside(figure) -> bool:
    """The only legend is right of all axes."""
    figure.canvas.draw()
    (legend,) = figure.legends
    left = legend.get_window_extent().x0
    return all(axis.get_legend() is None and axis.get_window_extent().x1 <= left for axis in figure.axes)


def test_whiskers_are_for_several_seeds(drawn):
    columns = {"miou": 3.0, "miou min": 2.0, "miou max": 5.0}
    columns |= {f"miou {name}{end}": np.nan for name in figures.NAMES for end in ("", " min", " max")}
    figures.draw_groups([{"arm": "one", "seeds": 1, **columns}, {"arm": "three", "seeds": 3, **columns}], None)
    (axis,) = drawn[0].axes
    (bars,) = [bars for bars in axis.containers if hasattr(bars, "errorbar") and bars.errorbar]
    one, three = (np.array(segment) for segment in bars.errorbar.lines[2][0].get_segments())
    assert not np.isfinite(one).any()
    assert three[:, 1].tolist() == [2, 5]
    assert is_beside(drawn[0])


@pytest.mark.parametrize("level", [0.5, 42.0])
def test_the_untrained_encoder_is_a_line_that_is_seen(drawn, level):
    """However far it is from the arms."""
    untrained = SimpleNamespace(miou=level, iou=np.array([level, level]))
    figures.draw_curves([runs("one", curve(20, 25))], np.array([0, 0]), None, untrained)
    assert len(drawn[0].axes) == 2
    for axis in drawn[0].axes:
        low, high = axis.get_ylim()
        assert low < min(level, 20) and high > max(level, 25)
        assert axis.lines[-1].get_label() == "untrained encoder"


def test_bands_are_for_several_seeds(drawn):
    arms = [runs("one", curve(1, 2)), runs("two", curve(1, 2), curve(3, 4))]
    figures.draw_curves(arms, np.array([0, 0]), None)
    for axis in drawn[0].axes:
        assert [line.get_label() for line in axis.lines] == ["one", "two (2)"]
        assert len(axis.collections) == 1
    assert is_beside(drawn[0])


@pytest.mark.parametrize(("seeds", "patches", "label"), [(1, 2, "middle"), (2, 3, "middle, mean and range")])
def test_the_range_of_a_sweep_is_of_several_seeds(drawn, seeds, patches, label):
    swept = [runs("a", curve(1, 2), group="g"), runs("b", curve(1, 3), group="h")]
    figures.draw_sweep(swept, runs("middle", *[curve(1, 2), curve(1, 4)][:seeds]), None)
    (axis,) = drawn[0].axes
    assert len(axis.patches) == patches  # two bars, and a band
    assert axis.lines[0].get_label() == label
    assert is_beside(drawn[0])
