"""Descriptions of benchmarks, official layouts and label encodings, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import benchmark_worlds as worlds
import numpy as np
import pytest
import yaml
from PIL import Image

from curation.base.errors import CocuError
from evaluation import benchmark as benchmark_module
from evaluation.__main__ import build_parser
from evaluation.benchmark import AbsentError, packaged, read_benchmark
from evaluation.labels import COCO_STUFF, COCO_THINGS, ENCODINGS
from evaluation.layout import list_images, read_labelled

COUNTS = {
    "voc": (21, 1449, 0.95), "context": (60, 5104, 0.35), "coco_object": (81, 5000, 0.95), "imagenet_s_50": (51, 752, 0.95),
    "imagenet_s_300": (301, 4097, 0.75), "coco_stuff": (171, 5000, None), "cityscapes": (19, 500, None),
    "ade20k": (150, 2000, None),
}  # fmt: skip


@pytest.mark.parametrize("name", list(COUNTS))
def test_packaged_descriptions_are_those_of_the_protocol(name):
    benchmark = read_benchmark(name, "data")
    assert (len(benchmark.classes), benchmark.val_images, benchmark.bg_threshold) == COUNTS[name]
    assert benchmark.background == (benchmark.classes[0] == "background") == (COUNTS[name][2] is not None)
    assert "background" not in benchmark.words
    sizes = {"cityscapes": (1024, 448, 224), "coco_stuff": (512, 224, 112), "ade20k": (512, 224, 112)}
    assert (benchmark.resize_short, benchmark.crop, benchmark.stride) == sizes.get(name, (448, 448, 224))
    assert benchmark.resize_long_max == 2048
    ignored = {"coco_object": None, "imagenet_s_50": 1000, "imagenet_s_300": 1000}
    assert benchmark.ignore_index == ignored.get(name, 255)
    assert list(packaged()) == [*COUNTS, "demo"]
    assert list(worlds.OFFICIAL) == list(COUNTS)  # each has a tiny world


def test_a_file_in_configs_is_one_packaged_benchmark_more(tmp_path, monkeypatch):
    shutil.copytree(packaged()["voc"].parent, tmp_path / "configs")
    worlds.own(tmp_path, 0, order=10).rename(tmp_path / "configs" / "mine.yaml")
    monkeypatch.setattr(benchmark_module.resources, "files", lambda package: tmp_path)
    assert list(packaged())[-2:] == ["demo", "mine"]
    assert read_benchmark("mine", "data").layout.root == "data/data"
    assert "ade20k, demo, mine" in " ".join(build_parser().format_help().split())
    with pytest.raises(CocuError, match=r"'mein' is not packaged .*ade20k, demo, mine, or give a YAML file"):
        read_benchmark("mein", "data")


@pytest.mark.parametrize("name", list(COUNTS))
def test_official_folders_are_read_with_their_labels(name, tmp_path):
    truth = worlds.OFFICIAL[name](tmp_path)
    benchmark = read_benchmark(name, str(tmp_path))
    images = list_images(benchmark)
    assert len(images) == len(truth)
    for files, expected in zip(images, truth, strict=True):
        image, labels = read_labelled(files, benchmark)
        np.testing.assert_array_equal(labels, expected)
        assert image.mode == "RGB"
        assert image.size == expected.shape[::-1]


@pytest.mark.parametrize(("name", "converted"), [("coco_object", True), ("cityscapes", True), ("coco_stuff", False)])
def test_converted_and_original_masks_give_the_same_labels(name, converted, tmp_path):
    truth = getattr(worlds, name)(tmp_path, converted=converted)
    benchmark = read_benchmark(name, str(tmp_path))
    (files,) = list_images(benchmark)
    np.testing.assert_array_equal(read_labelled(files, benchmark)[1], truth[0])
    assert (files.encoding == "indices") == converted


def test_converted_masks_are_preferred(tmp_path):
    worlds.cityscapes(tmp_path, converted=False)
    worlds.cityscapes(tmp_path, converted=True)
    (files,) = list_images(read_benchmark("cityscapes", str(tmp_path)))
    assert files.mask_path.endswith("labelTrainIds.png")


def test_cocos_gaps():
    assert len(COCO_THINGS) == 80
    assert len(COCO_STUFF) == 91
    values = np.arange(256, dtype=np.uint8)[None]
    things = ENCODINGS["coco_things"](values, None)[0]
    assert sorted(set(things.tolist())) == list(range(81))
    assert [int(things[value]) for value in (0, 10, 11, 12, 89, 90, 91, 255)] == [1, 11, 0, 12, 80, 0, 0, 0]
    stuff = ENCODINGS["coco_stuff"](values, 255)[0]
    assert sorted(set(stuff.tolist())) == [*range(171), 255]
    assert [int(stuff[value]) for value in (0, 89, 90, 91, 181, 182)] == [0, 79, 255, 80, 170, 255]

    # Category ids that COCO's label map names and its annotations do not; 82 is the refrigerator, 84 the book.
    for never_used in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91):
        assert (things[never_used - 1], stuff[never_used - 1]) == (0, 255)
    assert (things[82 - 1], stuff[82 - 1]) == (73, 72)
    assert (things[84 - 1], stuff[84 - 1]) == (74, 73)


def test_what_ade20k_masks_ignore():
    """0 is no class, and 255, which some converters write, is none either: not class 254."""
    assert ENCODINGS["zero_ignored"](np.array([[0, 1, 150, 255]], np.uint8), 255).tolist() == [[255, 0, 149, 255]]
    assert ENCODINGS["zero_ignored"](np.array([[0, 1, 150, 255]], np.uint8), -1).tolist() == [[-1, 0, 149, 254]]


def test_names_are_ids_or_paths_where_ids_repeat(tmp_path):
    for folder in "ab":
        worlds.photo(tmp_path / f"d/{folder}/1.png", 0)
        worlds.mask(tmp_path / f"d/m/{folder}_1.png", worlds.stripes([0, 1]))
    layout = {"root": "d", "images": "{part}/{id}.png", "masks": "m/{part}_{id}.png"}
    path = worlds.own(tmp_path, 0, layout=layout)
    images = list_images(read_benchmark(str(path), ""))
    assert [files.name for files in images] == ["a/1", "b/1"]


def test_classes_may_come_from_a_file(tmp_path):
    path = worlds.own(tmp_path, 1, classes=...)
    (tmp_path / "data/classes.txt").write_text("background\ndog\n\ntraffic light\nsky\n")
    assert read_benchmark(str(path), "").words == ("dog", "traffic light", "sky")
    (tmp_path / "names.txt").write_text("background\nx\n")
    path = worlds.own(tmp_path, 1, classes="names.txt")
    assert read_benchmark(str(path), "").words == ("x",)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(AbsentError, match=f"no folder {tmp_path}/data"):
        values = yaml.safe_load(path.read_text())
        del values["classes"]
        path.write_text(yaml.safe_dump(values))
        read_benchmark(str(path), "")


def test_root_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("COCU_TEST_DATA", str(tmp_path / "elsewhere"))
    layout = {"root": "${COCU_TEST_DATA}/x", "images": "{id}.png", "masks": "{id}_m.png"}
    benchmark = read_benchmark(str(worlds.own(tmp_path, 0, layout=layout)), "")
    assert benchmark.layout.root == str(tmp_path / "elsewhere/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, "num_classes: 5, but 4 classes are named"),
        ({"classes": ["a", "b"]}, "classes: the first is 'a', expected 'background'"),
        ({"classes": ["background"]}, "at least one besides background"),
        ({"classes": ["background", "a", "a"]}, "classes: 'a' occurs twice"),
        ({"classes": ["background", 3]}, "is not text; put it in quotes"),
        ({"classes": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"bg_threshold": ...}, "bg_threshold: missing"),
        ({"background": False}, "bg_threshold: has no meaning with background: false"),
        ({"stride": 65}, "stride: 65 is larger than crop 64"),
        ({"crop": 0, "stride": 0}, "crop: 0 must be at least 1"),
        ({"crop": "64"}, "crop: expected .*int.*, found '64'"),
        ({"background": 1}, "background: expected .*bool.*, found 1"),
        ({"ignore_index": 2}, "ignore_index: 2 is the index of class 2 of 4"),
        ({"encoding": "index"}, "encoding: 'index' is not one of .*did you mean 'indices'"),
        ({"raw_encoding": "rgb"}, "raw_encoding: goes with layout.raw_masks"),
        ({"shrink_long": 3}, "shrink_above: goes with shrink_long"),
        ({"strid": 3}, "unknown key strid .did you mean 'stride'"),
        ({"resize_short": ...}, "resize_short: missing"),
        ({"layout": ...}, "layout: missing"),
        ({"layout": {"root": "d", "images": "x.png", "masks": "{id}.png"}}, "layout.images: x.png has no {id}"),
        ({"layout": {"root": "d", "images": "{id}.png"}}, "layout.masks: missing"),
        (
            {"layout": {"root": "d", "images": "{1}{id}.png", "masks": "{id}.png"}},
            r"layout.images: .*\{1\} is no field",
        ),
        ({"layout": {"root": "d", "images": "{id}.png", "masks": "{id}_{}.png"}}, "layout.masks: .*{} is no field"),
        ({"layout": {"root": "d", "images": "{id}.png", "masks": "{id}_{.png"}}, "layout.masks: .*expected '}'"),
        (
            {"layout": {"root": "d", "images": "{id}.png", "masks": "{id}_{n:03d}.png"}},
            "layout.masks: .*{n} is no field",
        ),
        ({"name": "../../x"}, "name: '../../x' is no name of a folder"),
        ({"name": ""}, "name: '' is no name of a folder"),
        ({"shrink_above": 9, "shrink_long": -1}, "shrink_long: -1 must be at least 1"),
    ],
)
def test_bad_descriptions_are_refused_with_file_and_key(tmp_path, changes, message):
    path = worlds.own(tmp_path, 0, **changes)
    with pytest.raises(CocuError, match=message) as error:
        read_benchmark(str(path), "")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_benchmarks_are_named_with_the_nearest():
    with pytest.raises(CocuError, match=r"'ade20' is not packaged \(did you mean 'ade20k'\?\); there are voc, "):
        read_benchmark("ade20", "data")
    with pytest.raises(CocuError, match=r"nothing.yaml: no such file"):
        read_benchmark("nothing.yaml", "data")


def test_absent_folders_and_files_are_named(tmp_path):
    benchmark = read_benchmark("voc", str(tmp_path))
    base = tmp_path / "VOCdevkit/VOC2012"
    for path, kind in [
        (base, "folder"),
        (base / "JPEGImages", "folder"),
        (base / "ImageSets/Segmentation/val.txt", "file"),
    ]:
        with pytest.raises(AbsentError, match=f"no {kind} {path}"):
            list_images(benchmark)
        path.mkdir(parents=True)
    with pytest.raises(AbsentError, match="no file"):
        list_images(benchmark)
    (tmp_path / "city/leftImg8bit/val/").mkdir(parents=True)
    with pytest.raises(AbsentError, match=r"no image .*leftImg8bit/val/{city}"):
        list_images(read_benchmark("cityscapes", str(tmp_path)))


def spoil_label(folder: Path) -> None:
    worlds.mask(folder / "masks/i1.png", worlds.stripes([0, 4, 77], (64, 64)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "masks/i1.png").unlink(), r"images/i1.png: has no mask; looked for .*masks/i1.png"),
        (lambda f: worlds.mask(f / "masks/i1.png", worlds.stripes([0], (63, 64))), "63 x 64 pixels, but the image 64 x 64"),
        (spoil_label, r"masks/i1.png: label 4, 77 is outside 0..3 and is not ignore_index 255"),
        (lambda f: (f / "images/i1.png").write_bytes(b"junk"), "images/i1.png: image cannot be decoded"),
        (lambda f: (f / "masks/i1.png").write_bytes(b"junk"), "masks/i1.png: mask cannot be decoded"),
        (lambda f: (f / "images/i1.png").write_bytes((f / "images/i0.png").read_bytes()[:90]), "i1.png: image cannot"),
        (lambda f: worlds.photo(f / "masks/i1.png", 0, (64, 64)), "expected one channel, found 3: .* encoding: rgb"),
    ],
)  # fmt: skip
def test_bad_images_and_masks_are_named(tmp_path, spoil, message):
    benchmark = read_benchmark(str(worlds.own(tmp_path)), "")
    spoil(tmp_path / "data")
    with pytest.raises(CocuError, match=message) as error:
        [read_labelled(files, benchmark) for files in list_images(benchmark)]
    assert "\n" not in str(error.value)


def test_an_image_that_the_split_names_must_be_there(tmp_path):
    worlds.voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2011_003256.jpg").unlink()
    with pytest.raises(CocuError, match=r"2011_003256.jpg: no such image, though ImageSets/Segmentation/val.txt"):
        list_images(read_benchmark("voc", str(tmp_path)))


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/../../b"])
def test_ids_of_a_split_stay_inside(tmp_path, name):
    """Predictions are written to paths made of ids."""
    worlds.voc(tmp_path)
    worlds.split(tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", ["2007_000033", name])
    with pytest.raises(CocuError, match=f"val.txt: '{name}' leads out of the folder"):
        list_images(read_benchmark("voc", str(tmp_path)))


def test_masks_of_16_bits_and_of_one_channel_where_rgb_is_expected(tmp_path):
    labels = worlds.stripes([0, 300, 1000])
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "m.png")
    decoded = ENCODINGS["indices"](np.array(Image.open(tmp_path / "m.png")), 1000)
    np.testing.assert_array_equal(decoded, labels)
    with pytest.raises(CocuError, match="expected an RGB mask"):
        ENCODINGS["rgb"](labels, 1000)


ROWS_AND_COLUMNS = {  # EXIF orientation -> the stored picture, from the upright one
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.transpose(1, 0, 2),
    6: lambda picture: picture.transpose(1, 0, 2)[::-1],
    7: lambda picture: picture[::-1, ::-1].transpose(1, 0, 2),
    8: lambda picture: picture.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", ROWS_AND_COLUMNS)
@pytest.mark.parametrize("shrink", [False, True])
def test_masks_are_those_of_upright_pictures_or_of_stored_ones_that_they_alone_fit(orientation, shrink, tmp_path):
    benchmark = read_benchmark(str(worlds.own(tmp_path, 1)), "")
    if shrink:
        benchmark = dataclasses.replace(benchmark, shrink_above=10**6, shrink_long=1000)
    (files,) = list_images(benchmark)
    upright = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    stored = np.ascontiguousarray(ROWS_AND_COLUMNS[orientation](upright))
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / "data/images/i0.png", exif=exif)

    Image.fromarray(np.zeros((70, 100), np.uint8)).save(files.mask_path)
    np.testing.assert_array_equal(np.asarray(read_labelled(files, benchmark)[0]), upright)

    if stored.shape != upright.shape:
        Image.fromarray(np.zeros((100, 70), np.uint8)).save(files.mask_path)
        np.testing.assert_array_equal(np.asarray(read_labelled(files, benchmark)[0]), stored)


def test_an_image_that_the_camera_turned_fits_its_upright_mask(tmp_path):
    benchmark = read_benchmark(str(worlds.own(tmp_path, 1)), "")
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new("RGB", (100, 70)).rotate(90, expand=True).save(tmp_path / "data/images/i0.png", exif=exif)
    (files,) = list_images(benchmark)
    assert read_labelled(files, benchmark)[0].size == (100, 70)
