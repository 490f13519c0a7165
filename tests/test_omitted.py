"""The picture of what captions omit: its rule by hand, and the command on a tiny world whose sidecars have areas."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny_clip import save_clip, tiny_clip
from tiny_world import jpeg, make_tiny_clip, write_tar, write_world

from experiments.omitted import (
    MARK,
    Omission,
    archive_picture,
    choose,
    colour_ranges,
    largest_omissions,
    main,
    share_text,
)
from pipelines.curate import main as curate

AREAS = [
    ("a", "1", {"sand": 0.9, "boat": 0.1}),
    ("a", "2", {"sand": 0.7, "apples": 0.3}),
    ("a", "3", {"boat": 0.8}),
    ("b", "1", {"sand": 0.7, "apples": 0.2, "boat": 0.1}),
]
CAPTIONS = {"a": {"1": {("sand",)}, "2": set()}, "b": {"1": {("boat",), ("apple",)}}}  # a/3 was rejected


def test_each_class_has_the_image_that_it_covers_most_without_being_mentioned():
    expected = [Omission("a", "2", "sand", 0.7), Omission("a", "2", "apples", 0.3), Omission("a", "1", "boat", 0.1)]
    assert largest_omissions(AREAS, CAPTIONS) == expected
    assert choose(expected, {"apples", "boat"}, 1) == [expected[1], expected[0]]
    assert choose(expected, {"apples", "boat"}, 9) == [expected[1], expected[2], expected[0]]


def test_the_omitted_class_is_marked_in_the_archive_in_any_form():
    entries = [{"concept": name, "score": 1.5} for name in ("sand", "apples")]

    def marked(omitted: str) -> np.ndarray:
        pixels = np.asarray(archive_picture(entries, omitted, 160)).astype(int)
        return np.flatnonzero((np.abs(pixels - MARK).sum(2) < 60).any(1))

    assert not len(marked("boat"))
    assert 17 < marked("apple").min() < marked("apple").max() < 36  # the second line of nine
    assert marked("sand").max() < 18


def test_maps_share_their_colours_where_the_class_is_the_same_vector():
    low, high = np.array([[-0.1, 0.2]]), np.array([[0.0, 0.3]])
    assert colour_ranges([low, high], shared=True) == [(-0.1, 0.3)] * 2
    assert colour_ranges([low, high], shared=False) == [(-0.1, 0.2), (0.0, 0.3)]
    first, other = tiny_clip("timm"), tiny_clip("timm")
    first.clip.visual.head.proj.weight.data += 1.0  # another image tower
    assert share_text([first, other], "apple")
    other.clip.ln_final.bias.data += 1.0
    assert not share_text([first, other], "apple")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omitted")
    members = []
    for key in map(str, range(12)):
        truth = {"objects": ["apple"], "stuff": ["sand"], "area": {"sand": 0.6, "apple": 0.02 * int(key)}}
        caption = "a boat" if key != "11" else "an apple"  # which is why 10 is chosen
        members += [(f"{key}.jpg", jpeg(a="red")), (f"{key}.txt", caption.encode())]
        members += [(f"{key}.json", json.dumps(truth).encode())]
    write_tar(folder / "00000.tar", members)
    (folder / "concepts.txt").write_text("apple\nboat\nsand\n")
    clip = make_tiny_clip(folder / "clip")
    world = write_world(folder / "world.yaml", clip, shards="00000.tar")
    assert curate(["--data", str(world), "--output", str(folder / "out"), "--runner", "inprocess"]) == 0
    return folder / "out"


def test_the_command_draws_a_row_for_a_thing_and_one_for_stuff(run, tmp_path, capsys):
    model = f"tiny=local-dir:{save_clip(tiny_clip('timm'), tmp_path / 'clip')}"
    path = tmp_path / "new" / "omitted.png"
    assert main([str(run), "--model", model, "--count", "1", "-o", str(path)]) == 0
    width, height = Image.open(path).size
    assert f"{path}: {width} x {height} pixels" in capsys.readouterr().out
    assert main([str(run), "--model", model, "--model", model.replace("tiny", "other", 1), "-o", str(path)]) == 0
    assert Image.open(path).height == height and Image.open(path).width == width + (width - 14) // 3


def test_mistakes_are_one_line(run, finished, tmp_path, capsys):
    model = f"tiny=local-dir:{save_clip(tiny_clip('timm'), tmp_path / 'clip')}"
    for arguments, message in (
        ([str(run), "--model", "nowhere.ckpt"], "write TITLE=CHECKPOINT"),
        ([str(finished), "--model", model], "no json sidecar of its images has area"),
    ):
        assert main([*arguments, "-o", str(tmp_path / "x.png")]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_captions_that_omit_nothing_are_said(run, tmp_path, monkeypatch, capsys):
    everything = {str(key): {("apple",), ("sand",)} for key in range(12)}
    monkeypatch.setattr("experiments.omitted.mentioned", lambda archive, shard: everything)
    model = f"tiny=local-dir:{save_clip(tiny_clip('timm'), tmp_path / 'clip')}"
    assert main([str(run), "--model", model, "-o", str(tmp_path / "x.png")]) == 1
    assert f"{run}: no caption omits a class" in capsys.readouterr().err
