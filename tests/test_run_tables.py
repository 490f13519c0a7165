"""Tables and sentences of a comparison against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.arms import Arm
from experiments.findings import findings
from experiments.omission import by_group, groups
from experiments.scores import Curve, mean_losses, read_curve
from experiments.summary import ArmRuns, final_table, steps_to


def runs(name: str, *miou: list[float]) -> ArmRuns:
    """Runs of an arm with these mIoU at steps 10, 20, ...: four classes, the last of which has all of it."""
    curves = []
    for values in miou:
        iou = np.zeros((len(values), 4))
        iou[:, 3] = 4 * np.array(values)
        steps = 10 * np.arange(1, len(values) + 1)
        curves.append(Curve(steps, np.array(values) + 1, iou, np.zeros((len(values), 3))))
    return ArmRuns(Arm(name, name), curves)


def test_classes_are_grouped_by_omission():
    shares = np.array([0.2, 0.6, 0.9, np.nan])
    assert groups(shares).tolist() == [0, 1, 2, -1]
    iou = np.array([[10.0, 20.0, np.nan, 40.0], [2.0, 4.0, 6.0, 8.0]])
    assert by_group(iou, np.array([0, 0, 2, 2])).tolist()[1] == pytest.approx([3, np.nan, 7], nan_ok=True)
    assert by_group(iou, np.array([0, 0, 2, 2]))[0, 2] == 40


def test_final_scores_are_the_last_ones_over_seeds():
    arms = [
        runs("caption", [1.0, 2.0, 4.0], [1.0, 2.0, 2.0]),
        runs("cluster", [2.0, 3.5, 9.0]),
        runs("top", [1.0, 1.0, 1.0]),
    ]
    caption, cluster, top = final_table(arms, np.array([0, 0, 0, 2]))
    assert (caption["miou"], caption["miou min"], caption["miou max"], caption["seeds"]) == (3, 2, 4, 2)
    assert caption["pixel_accuracy"] == 4
    assert cluster["miou omitted above 80%"] == 36
    assert np.isnan(cluster["miou omitted 60 to 80%"])
    assert [line["steps to baseline"] for line in (caption, cluster, top)] == [30, 20, None]
    assert steps_to(arms[1], 3.5) == 20


def test_the_page_says_what_the_numbers_say():
    group = np.array([0, 0, 0, 2])
    arms = [runs("caption", [1.0, 2.0], [1.0, 3.0]), runs("cluster", [2.5, 6.0], [2.0, 5.0])]
    text = "\n".join(findings(arms, final_table(arms, group)))
    assert "cluster ends at mIoU 5.50 (5.00 to 6.00), caption at 2.50 (2.00 to 3.00): a difference of +3.00" in text
    assert "ranges do not overlap" in text
    assert "cluster reaches the final mIoU of caption (2.50) after 20 of 20 steps." in text
    more = [*arms, runs("outside", [3.5, 7.0], [3.5, 7.0]), runs("lucky", [9.0, 9.0])]
    more.append(ArmRuns(Arm("truth", "", "truth"), more[-2].curves))
    text = "\n".join(findings(more, final_table(more, group)))
    assert "outside ends at mIoU 7.00 (7.00 to 7.00), caption at 2.50 (2.00 to 3.00): a difference of +4.50" in text
    assert "outside reaches the final mIoU of caption (2.50) after 10 of 20 steps." in text
    assert "truth ends" not in text and "lucky ends" not in text
    worse = [ArmRuns(Arm("caption", ""), arms[1].curves), runs("cluster", [1.0, 1.0])]
    text = "\n".join(findings(worse, final_table(worse, group)))
    assert "a difference of -4.50; one seed does not tell it from chance." in text
    assert "at no validation within 20 steps" in text


def test_losses_are_means_between_validations(tmp_path):
    for version, rows in (
        (0, [(0, 1), (9, 3), (10, 5)]),
        (1, [(10, 7), (25, 9)]),
    ):  # cut off after step 10, and resumed
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        lines = [f"{step},{loss},{loss},0.5" for step, loss in rows]
        (folder / "metrics.csv").write_text(
            "step,train/caption_loss,train/prompt_loss,train/retrieval_accuracy\n" + "\n".join([*lines, "11,,,"]) + "\n"
        )
    means = mean_losses(tmp_path, np.array([10, 20, 30]))
    assert means[0].tolist() == pytest.approx([11 / 3, 11 / 3, 0.5])
    assert np.isnan(means[1]).all()
    assert means[2, 0] == 9


def test_of_two_validations_at_one_step_the_later_counts(tmp_path):
    (tmp_path / "scores.csv").write_text("10,50.0,1.0,nan\n20,60.0,2.0,4.0\n10,55.0,3.0,5.0\n")
    curve = read_curve(tmp_path)
    assert curve.steps.tolist() == [10, 20]
    assert curve.pixel_accuracy.tolist() == [55, 60]
    assert curve.miou.tolist() == [4, 3]
