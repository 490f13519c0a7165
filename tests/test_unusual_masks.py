"""What is unusual about a benchmark's files is named, beside its numbers or in place of them."""

from __future__ import annotations

import codecs
import json

import benchmark_worlds as worlds
import pytest
import torch
from PIL import Image

from curation.base.errors import CocuError
from evaluation.__main__ import main
from evaluation.benchmark import read_benchmark
from evaluation.evaluate import evaluate
from evaluation.layout import list_images
from evaluation.report import warnings


def spoil(folder, number: int, values: list[int]) -> None:
    path = folder / f"data/masks/i{number}.png"
    with Image.open(path) as image:
        size = image.size
    worlds.mask(path, worlds.stripes(values, size))


def test_classes_without_a_pixel_and_masks_without_a_class_are_named(huggingface, tmp_path, capsys):
    """Masks of 5 images: only ignored; background and ignored; and three that hold fox, but neither grass nor water."""
    path = worlds.own(tmp_path, 5)
    for number, values in enumerate([[255], [0, 255], [1, 255], [0, 1], [1]]):
        spoil(tmp_path, number, values)
    output = tmp_path / "results.json"
    arguments = worlds.evaluated(huggingface[1], path, output)
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "mine: no mask has a pixel of grass, water: where predicted, IoU 0, else left out of the mean (2 of 4" in said
    )
    assert "mine: 2 masks hold nothing but ignore_index and background: i0, i1" in said
    result = json.loads(output.read_text())["benchmarks"]["mine"]
    assert result["classes_without_pixel"] == ["grass", "water"]
    assert result["masks"] == {"without_class": ["i0", "i1"], "without_image": []}


def test_a_mask_of_the_first_class_counts_as_labelled_where_there_is_no_background(groupvit, tmp_path):
    classes = ["sky", "red fox", "grass", "water"]
    path = worlds.own(tmp_path, 2, background=False, bg_threshold=..., classes=classes, ignore_index=255)
    spoil(tmp_path, 0, [0, 255])
    spoil(tmp_path, 1, [255])
    result = evaluate(groupvit, read_benchmark(str(path), ""))
    assert result.unlabelled == ("i1",)
    assert result.classes_without_pixel == classes[1:]


def test_nothing_is_said_of_masks_that_hold_every_class(groupvit, tmp_path):
    path = worlds.own(tmp_path, 2)
    for number in range(2):
        spoil(tmp_path, number, [0, 1, 2, 3])
    assert warnings([evaluate(groupvit, read_benchmark(str(path), ""))]) == []


def test_masks_without_an_image_are_named_where_suffixes_are_mixed(groupvit, tmp_path):
    """4 of 12 images are taken by images/{id}.png; the other 8 are JPEGs. {suffix} takes all of them."""
    path = worlds.own(tmp_path, 12)
    for number in range(4, 12):
        name = tmp_path / f"data/images/i{number}.png"
        with Image.open(name) as image:
            image.save(name.with_suffix(".jpg"))
        name.unlink()
    result = evaluate(groupvit, read_benchmark(str(path), ""))
    assert (result.available, len(result.without_image)) == (4, 8)
    (line,) = [line for line in warnings([result]) if "masks have no image" in line]
    assert "8 masks have no image images/{id}.png and are left out: masks/i10.png, masks/i11.png, masks/i4.png" in line
    assert "write {id}.{suffix}" in line

    worlds.own(tmp_path, 0, layout={"root": "data", "images": "images/{id}.{suffix}", "masks": "masks/{id}.png"})
    result = evaluate(groupvit, read_benchmark(str(path), ""))
    assert (result.available, result.without_image) == (12, ())


def test_every_image_without_a_mask_is_counted(tmp_path):
    path = worlds.own(tmp_path, 6)
    for number in (1, 3, 4):
        (tmp_path / f"data/masks/i{number}.png").unlink()
    with pytest.raises(CocuError, match=r"images/i1.png: has no mask; .*; nor have 2 of the other 5 images: i3, i4$"):
        list_images(read_benchmark(str(path), ""))


def test_a_split_says_which_masks_count(groupvit, tmp_path):
    layout = {"root": "data", "images": "images/{id}.png", "masks": "masks/{id}.png", "split": "val.txt"}
    path = worlds.own(tmp_path, 4, layout=layout)
    (tmp_path / "data/val.txt").write_text("i1\ni2\n")
    assert evaluate(groupvit, read_benchmark(str(path), "")).without_image == ()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, ending):
    layout = {"root": "data", "images": "images/{id}.png", "masks": "masks/{id}.png", "split": "val.txt"}
    path = worlds.own(tmp_path, 3, layout=layout, classes="names.txt")
    (tmp_path / "data/val.txt").write_bytes(codecs.BOM_UTF8 + ending.join(["i2", "i0", ""]).encode())
    names = ["background", "fox", "café", "water"]
    (tmp_path / "names.txt").write_bytes(codecs.BOM_UTF8 + ending.join([*names, ""]).encode())
    benchmark = read_benchmark(str(path), "")
    assert benchmark.classes == tuple(names)
    assert [image.name for image in list_images(benchmark)] == ["i2", "i0"]
    (tmp_path / "data/val.txt").write_bytes("i2\n".encode("utf-16"))
    with pytest.raises(CocuError, match=r"val.txt: cannot be read .*utf-8"):
        list_images(benchmark)


def test_two_processes_name_what_one_names(groupvit, tmp_path, monkeypatch):
    """Each rank sees its own images; the sum over ranks has all of them, as the counts do."""
    from evaluation.evaluate import Share

    path = worlds.own(tmp_path, 4)
    for number in (1, 2):
        spoil(tmp_path, number, [0, 255])
    benchmark = read_benchmark(str(path), "")
    summed = []
    monkeypatch.setattr("evaluation.metric.sum_over_ranks", lambda values, group: summed.append(values) or values)
    found = [set(evaluate(groupvit, benchmark, share=Share(rank, 2)).unlabelled) for rank in (0, 1)]
    assert found == [{"i2"}, {"i1"}]
    assert [values.dtype for values in summed] == [torch.int64] * 4
