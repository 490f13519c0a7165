"""``cocu init``: a configuration from a look at the data, and the first hour that it is part of."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace

import pytest
from tiny_world import COLOURS, GROUNDS, jpeg, write_tar

from cocu.__main__ import main
from curation.config import load
from curation.index.choose import choose_index
from curation.samples import list_shards, read_samples
from curation.tools.init.settings import configuration, encoder_of, min_count
from curation.tools.init.shards import folder_of, pattern_of
from curation.tools.init.survey import estimated_rows, look

CAPTION = "a photograph of number {}"


def tar(path, count=30, image="jpg", **fields):
    """A tar of so many samples; ``fields``: content of each other member, with {} for the number."""
    fields = fields or {"txt": CAPTION}
    members = []
    for number in range(count):
        members.append((f"{path.stem}-{number:04d}.{image}", jpeg()))
        for name, text in fields.items():
            content = text(number) if callable(text) else text.format(number)
            members.append((f"{path.stem}-{number:04d}.{name}", content.encode()))
    return write_tar(path, members)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_photographs_become_archives_that_can_be_searched(here, tiny_clip, capsys):
    """The commands of the README, as they stand there but for the encoder and the vocabulary."""
    (here / "photos").mkdir()
    for number in range(24):
        colour = list(COLOURS)[number % len(COLOURS)]
        (here / "photos" / f"{number}.jpg").write_bytes(jpeg(ground="white", a=COLOURS[colour]))
        (here / "photos" / f"{number}.txt").write_text(f"my {colour} on {list(GROUNDS)[number % 2]}")
    (here / "concepts.txt").write_text("\n".join([*COLOURS, *GROUNDS]))
    assert main(shlex.split("pack photos -o 'data/{:05d}.tar'")) == 0
    tars = sorted(str(path.relative_to(here)) for path in (here / "data").glob("*.tar"))
    assert main(["init", *tars, "--encoder", f"local-dir:{tiny_clip}"]) == 0
    options = ["--runner", "inprocess", "--vocabulary.source", "concepts.txt"]
    assert main(["curate", "my-data.yaml", *options]) == 0
    capsys.readouterr()
    assert main(["search", "artifacts/my-data", "an apple on sand", "--count", "3"]) == 0
    assert "my " in capsys.readouterr().out


def test_the_file_means_what_was_looked_at(here):
    for shard in range(3):
        tar(here / "data" / f"{shard:05d}.tar", image="png")
    assert main(["init", "data/00000.tar", "data/00001.tar", "data/00002.tar"]) == 0
    config = load("my-data.yaml")
    assert config.name == "my-data" and config.output_folder == os.path.join("artifacts", "my-data")
    assert [shard.path for shard in list_shards(config.shards)] == [
        str(here / "data" / f"0000{n}.tar") for n in range(3)
    ]
    assert "shards: data/{00000..00002}.tar" in (here / "my-data.yaml").read_text().replace('"', "")
    assert (config.image, config.caption) == ("png", "txt")
    assert (config.encoder.model, config.encoder.pretrained) == ("ViT-B-16", "openai")
    assert config.vocabulary.smallest_count == 3
    with open(list_shards(config.shards)[0].path, "rb") as stream:
        samples = list(read_samples(stream, "x", config.image, config.caption))
    assert [sample.caption for sample in samples] == [CAPTION.format(number) for number in range(30)]


def test_pictures_of_other_kinds_behind_what_was_looked_at_are_read_too(tmp_path):
    members = []
    for number in range(260):
        kind = "jpg" if number < 240 else "gif"
        members.append((f"{number:04d}.{kind}", jpeg(ground="white")))
        members.append((f"{number:04d}.txt", f"a dog, number {number}".encode()))
    survey = look([str(write_tar(tmp_path / "a.tar", members))])
    assert survey.image == "jpg" and survey.rows > survey.samples
    assert survey.images.split(";")[0] == "jpg" and "gif" in survey.images.split(";")
    assert look([str(tar(tmp_path / "b.tar"))]).images == "jpg"


def test_a_file_that_is_there_is_not_overwritten(here, capsys):
    tar(here / "data" / "0.tar")
    (here / "my-data.yaml").write_text("mine")
    assert main(["init", "data"]) == 1
    assert "my-data.yaml: is there already" in capsys.readouterr().err
    assert (here / "my-data.yaml").read_text() == "mine"
    assert main(["init", "data", "-o", "other.yaml"]) == 0
    assert load("other.yaml").name == "other"


def sidecar(number: int) -> str:
    return json.dumps({"url": f"https://x/{number}", "alt": CAPTION.format(number), "licence": "a licence of words",
                       "blip": {"caption": f"blip says {number}"}})  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "caption", "others"),
    [
        ({"txt": CAPTION}, "txt", []),
        ({"text": CAPTION, "json": sidecar}, "text", ["json:blip.caption"]),  # alt is the same
        ({"json": sidecar}, "json:blip.caption", ["json:alt"]),
        ({"caption": CAPTION, "cls": "{}"}, "caption", []),
    ],
)
def test_captions_are_found_where_they_are(fields, caption, others, tmp_path):
    survey = look([str(tar(tmp_path / "a.tar", **fields))])
    assert (survey.caption, survey.others) == (caption, others)
    assert survey.usable == survey.samples == survey.rows == 30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cls": "{}"}, "no field holds captions of most samples; there are jpg, cls"),
        ({"txt": lambda number: "" if number else "only one"}, "no field holds captions"),
    ],
)
def test_data_without_captions_is_one_line(fields, message, here, capsys):
    tar(here / "a.tar", **fields)
    assert main(["init", "a.tar"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(here.glob("*.yaml"))


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda folder: (folder / "photos").mkdir(), ["photos"], "photos: holds no tars; if it holds pictures, pack them"),
        (lambda folder: None, ["nowhere/*.tar"], "nowhere/*.tar matches no file"),
        (lambda folder: (folder / "a.zip").touch(), ["a.zip"], "a.zip: is no tar"),
        (lambda folder: None, ["a.zip"], "a.zip: no such file or folder; name the tars"),
        (lambda folder: None, [], "data: no such file or folder; name the tars"),
        (lambda folder: tar(folder / "a.tar", image="svg"), ["a.tar"], "no field is an image"),
        (lambda folder: write_tar(folder / "a.tar", []), ["a.tar"], "holds no samples"),
        (lambda folder: tar(folder / "a.tar"), ["a.tar", "--encoder", "ViT-B-16"], "names no weights; write ViT-B-16/TAG"),
        (lambda folder: tar(folder / "a.tar"), ["a.tar", "-o", "a.txt"], "must end in .yaml"),
        (lambda folder: tar(folder / "a.tar"), ["a.tar", "-o", "no/such/a.yaml"], "cannot be written"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(make, words, message, here, capsys):
    make(here)
    assert main(["init", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("count", [30, 300])  # more than are looked at
def test_a_tar_that_curation_would_refuse_is_refused_with_the_same_remedy(count, here, capsys):
    images = [(f"{number}.jpg", jpeg()) for number in range(count)]
    captions = [(f"{number}.txt", b"a dog") for number in range(count)]
    write_tar(here / "apart.tar", [*images, *captions])
    assert main(["init", "apart.tar"]) == 1
    error = capsys.readouterr().err
    assert "its samples are not adjacent" in error and "cocu pack" in error


@pytest.mark.parametrize("count", [5, 900])
def test_samples_are_counted_by_their_bytes(count, tmp_path):
    """All tars alike: what was not looked at holds as much a byte as what was."""
    paths = [str(tar(tmp_path / f"{number}.tar", count)) for number in range(5)]
    assert estimated_rows(paths) == pytest.approx(5 * count, rel=0.05)


@pytest.mark.parametrize(
    ("paths", "pattern"),
    [
        (["d/0.tar"], "d/0.tar"),
        (["d/08.tar", "d/09.tar", "d/10.tar"], "d/{08..10}.tar"),
        (["d/8.tar", "d/10.tar"], ["d/8.tar", "d/10.tar"]),
        (["x/0.tar", "y/1.tar"], ["x/0.tar", "y/1.tar"]),
        (["d/a-0.tar.gz", "d/a-1.tar.gz"], "d/a-{0..1}.tar.gz"),
        (["{d}/0.tar", "{d}/1.tar"], ["{d}/0.tar", "{d}/1.tar"]),
    ],
)
def test_one_pattern_names_numbers_that_follow_each_other(paths, pattern):
    assert pattern_of(paths) == pattern


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["/a/data/0.tar"], "data"),
        (["/a/all/x/0.tar", "/a/all/y/0.tar"], "all"),
        (["https://host/cc3m/0.tar", "https://host/cc3m/1.tar"], "cc3m"),
        (["/0.tar"], "data"),
    ],
)
def test_the_name_is_that_of_the_folder(paths, name):
    assert folder_of(paths) == name


@pytest.mark.parametrize(("rows", "least"), [(20, 3), (5_000, 5), (50_000, 50), (10**7, 100)])
def test_suggestions_depend_on_the_size(rows, least, tmp_path):
    survey = replace(look([str(tar(tmp_path / "a.tar"))]), rows=rows)
    path = tmp_path / "x.yaml"
    path.write_text(configuration(survey, str(path), "ViT-B-16/openai"))
    config = load(str(path))
    assert config.vocabulary.smallest_count == min_count(rows) == least
    memory = int(config.retrieval.memory.removesuffix("G")) << 30
    assert choose_index(rows, 512, memory, config.retrieval.recall).bytes <= memory


def test_slashes_are_those_of_the_tag_only_where_open_clip_has_the_model():
    assert encoder_of("ViT-L-14/laion2b_s32b_b82k") == ("ViT-L-14", "laion2b_s32b_b82k")
    assert encoder_of("hf-hub:org/name") == ("hf-hub:org/name", None)
