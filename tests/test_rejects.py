"""What is wrong with data is found early, said at the end, and never mistaken for another sample."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from curated import copy, curate
from rich.console import Console
from tiny_world import jpeg, scene, write_tar, write_world

from curation import diagnosis, encoder
from curation.archive import AmbiguousKey, ConceptArchive, UnknownKey
from curation.base.errors import CocuError
from curation.config import from_mapping
from curation.run.rejects import read_rejects
from curation.run.run import open_run
from curation.samples import NOT_ADJACENT, Reject, Sample, read_samples
from curation.tools import verify
from curation.tools.show import find
from pipelines.curate import main
from pipelines.summary import print_counts

RNG_SEED = 3


def members(count: int, start: int = 0) -> list[list[tuple[str, bytes]]]:
    """Image, caption and json of so many samples."""
    rng = np.random.default_rng(RNG_SEED + start)
    return [scene(rng, f"{number:06d}") for number in range(start, start + count)]


def flat(samples: list[list[tuple[str, bytes]]]) -> list[tuple[str, bytes]]:
    """The members of samples, one sample after another."""
    return [member for sample in samples for member in sample]


def renamed(sample: list[tuple[str, bytes]], pattern: str) -> list[tuple[str, bytes]]:
    """The members of a sample with another key."""
    key = sample[0][0].partition(".")[0]
    return [(name.replace(key, pattern.format(key)), content) for name, content in sample]


@pytest.fixture
def data(tmp_path, tiny_clip):
    """A function that writes shards and their configuration: its path."""
    (tmp_path / "concepts.txt").write_text("apple\nboat\nsand\ngrass\nsea\nleaf\n")

    def write(*shards: list[tuple[str, bytes]], **changes: object) -> Path:
        for number, content in enumerate(shards):
            write_tar(tmp_path / f"{number:05d}.tar", content)
        return write_world(tmp_path / "data.yaml", tiny_clip, **{"shards": "*.tar", **changes})

    return write


@pytest.fixture
def no_encoder(monkeypatch):
    """The encoder must not be loaded."""

    def load(config):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(encoder, "load", load)


def failed(path: Path, capfd, *options: str) -> str:
    """Run; it must fail with one line and leave no manifest. The line."""
    output = path.parent / "out"
    assert main(["--data", str(path), "--output", str(output), "--runner", "inprocess", *options]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line]
    assert line.startswith("error:")
    assert not (output / "manifest.json").exists()
    return line


ORDERS = {
    "images first": lambda samples: [item for number in range(3) for item in (sample[number] for sample in samples)],
    "captions first": lambda samples: [sample[n] for n in (1, 0, 2) for sample in samples],
    "at random": lambda samples: [
        member for _, member in sorted(enumerate(flat(samples)), key=lambda item: item[0] * 2654435761 % 2**32)
    ],
    "json apart": lambda samples: [m for s in samples for m in (s[0], s[2])] + [sample[1] for sample in samples],
}


@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("count", [3, 30, 600])
def test_a_tar_whose_samples_are_not_adjacent_is_named(data, capfd, order, count, no_encoder):
    line = failed(data(ORDERS[order](members(count))), capfd)
    assert re.search(r"00000\.tar: its samples are not adjacent: \d+\.\w+ and \d+\.\w+ lie apart", line)
    assert "tar --sort=name" in line
    assert "cocu pack" in line


def test_a_tar_whose_end_is_not_sorted_is_named_too(data, capfd):
    samples = members(400)
    line = failed(data(flat(samples[:300]) + ORDERS["images first"](samples[300:])), capfd)
    assert "its samples are not adjacent: the files of 100 keys, such as 000300, lie apart" in line


def test_a_stray_member_costs_its_sample_only(data):
    samples = members(30)
    path = data(flat(samples)[1:] + samples[0][:1])
    assert curate(path, path.parent / "out") == 0
    (group, other) = read_rejects(open_run(str(path.parent / "out")))
    assert {group.kind, other.kind} == {"no image field", NOT_ADJACENT}
    assert pq.read_metadata(path.parent / "out" / "archives" / "00000.parquet").num_rows == 29


def test_a_second_caption_or_sidecar_far_away_is_a_duplicate_as_before(tmp_path):
    samples = members(2)
    for again in (samples[0], samples[0][1:2], samples[0][2:]):
        path = write_tar(tmp_path / "a.tar", [*samples[0], *samples[1], *again])
        (one, other, third) = read_samples(io.BytesIO(path.read_bytes()), "a.tar", "jpg", "txt")
        assert isinstance(one, Sample)
        assert isinstance(other, Sample)
        assert third == Reject("000000", "duplicate key")


# --- dots in names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 1500])
def test_photos_that_share_a_key_because_of_dots_are_named(data, capfd, no_encoder, count):
    sample = members(1)[0]
    photos = [member for number in range(count) for member in renamed(sample, f"IMG.{number}")]
    line = failed(data(photos), capfd)
    assert "several images share one key, which ends at the first dot of a file name: IMG has 0.jpg, 1.jpg, " in line
    assert "cocu pack" in line


def test_photos_behind_another_one_of_their_key_are_rejects(data):
    samples = flat(members(40))
    hidden = [*renamed(members(1, 40)[0], "000000.{}"), ("000001.mask.jpg", jpeg())]
    path = data(sorted(samples + hidden))
    assert curate(path, path.parent / "out") == 0
    (group,) = read_rejects(open_run(str(path.parent / "out")))
    assert group.line() == "1 x several images under one key, such as 000000.000040 (00000)"
    assert pq.read_metadata(path.parent / "out" / "archives" / "00000.parquet").num_rows == 40


# --- fields and captions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [25, 1000])
def test_fields_that_no_sample_has_are_named_with_those_there_are(data, capfd, count, no_encoder):
    path = data(flat(members(count)))
    line = failed(path, capfd, "--caption", "caption")
    seen = min(count, diagnosis.HEAD)
    assert f"{seen} of the first {seen} samples cannot be used, and max_rejects is 0.5" in line
    assert f"{count} of {count} samples have no caption field (caption); the fields there are " in line
    for field in ("jpg", "txt", "json"):
        assert f"{field} ({count})" in line
    assert "captions inside json become txt with cocu pack" in line
    line = failed(path, capfd, "--image", "png;jpeg")
    assert f"{count} of {count} samples have no image field (png;jpeg); the fields there are " in line


def test_captions_that_are_json_are_refused(data, capfd, no_encoder):
    samples = flat(members(30))
    assert "no caption field (txt)" in failed(data([m for m in samples if not m[0].endswith("txt")]), capfd)
    line = failed(data(samples), capfd, "--caption", "json")
    assert line.endswith("json of 000000 is JSON, not a sentence; write json:NAME in place of json for the text in it")
    told = [
        (name, b'{"url": "http://a b", "caption": "a dog"}' if name.endswith("json") else content)
        for name, content in samples
    ]
    expected = "json of 000000 is JSON, not a sentence; write json:caption in place of json for the text in it"
    assert failed(data(told[:30]), capfd, "--caption", "json").endswith(
        expected
    )  # of ten samples: fewer than say a share
    assert failed(data(told), capfd, "--captions", "[txt, json]").endswith(expected)


@pytest.mark.parametrize(
    ("caption", "is_json"),
    [
        *[
            ('{"caption": "a dog"}', True),
            ('["a dog", "a cat"]', True),
            ("[a dog]", False),
            ("{}", True),
            ("2021", False),
        ],
        *[("[1, 2]", False), ("[]", False), ('"a dog"', False), ("{a dog}", False), ("[" * 100_000, False)],
    ],
)
def test_only_what_is_json_counts_as_json(caption, is_json):
    from curation.samples import check_sample

    item = check_sample("k", {"jpg": b"i", "txt": caption.encode()}, ["jpg"], ["txt"])
    assert (item == Reject("k", "caption is JSON, not a sentence")) == is_json


# --- max_rejects --------------------------------------------------------------------------------------------------------


def spoilt(samples: list[list[tuple[str, bytes]]], bad: list[int], suffix: str) -> list[tuple[str, bytes]]:
    """The samples, some of them with a broken image or an empty caption."""
    broken = {"jpg": b"broken", "txt": b" "}[suffix]
    return [
        (name, broken if number in bad and name.endswith(suffix) else content)
        for number, sample in enumerate(samples)
        for name, content in sample
    ]


def test_too_many_rejects_among_the_first_samples_stop_a_run_before_the_encoder_is_loaded(data, capfd, no_encoder):
    line = failed(data(spoilt(members(600), list(range(130)), "txt")), capfd)
    assert (
        "130 of the first 256 samples cannot be used, and max_rejects is 0.5: most often, as for 000000: caption is"
        in line
    )


def test_images_that_cannot_be_decoded_stop_a_run_early(data, capfd, monkeypatch):
    encoded = []
    encode = encoder.Encoder.encode_images
    monkeypatch.setattr(
        encoder.Encoder, "encode_images", lambda self, images: encoded.append(0) or encode(self, images)
    )
    lines = [failed(data(spoilt(members(500), list(range(490)), "jpg")), capfd) for _ in range(2)]
    assert re.search(
        r"00000\.tar: \d+ of \d+ samples cannot be used, and max_rejects is 0\.5: .*cannot be decoded", lines[0]
    )
    assert lines[0] == lines[1]
    assert not encoded


@pytest.mark.parametrize(("limit", "code"), [("0.2", 1), ("0.25", 0), ("1", 0)])
def test_the_share_is_a_choice(data, capfd, limit, code):
    path = data(spoilt(members(40), list(range(20, 30)), "jpg"))
    assert curate(path, path.parent / "out", "--max_rejects", limit) == code
    if code:
        assert "samples cannot be used, and max_rejects is 0.2: most often, as for 000020" in capfd.readouterr().err


def test_many_small_shards_are_judged_together(data, capfd):
    shards = [spoilt(members(4, 4 * number), [0, 1, 2], "txt") for number in range(10)]
    line = failed(data(*shards), capfd)
    assert (
        "30 of 40 samples cannot be used, and max_rejects is 0.5: 30 x caption is empty, such as 000000 (00000)" in line
    )


def test_with_on_error_skip_only_the_shard_is_left_out(data, capfd):
    path = data(ORDERS["images first"](members(30)), flat(members(30, 30)))
    assert curate(path, path.parent / "out", "--on_error", "skip") == 0
    (group,) = read_rejects(open_run(str(path.parent / "out")))
    assert group.kind == "the shard cannot be read"
    assert "not adjacent" in group.examples[0][2]
    assert "1 x the shard cannot be read, such as 00000\n" in capfd.readouterr().out
    assert pq.read_metadata(path.parent / "out" / "archives" / "00001.parquet").num_rows == 30


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_share_is_between_0_and_1(value):
    with pytest.raises(CocuError, match=r"max_rejects: .* is not between 0 and 1"):
        from_mapping({"name": "a", "shards": "a.tar", "max_rejects": value})


def test_the_share_changes_nothing_of_a_finished_run(finished, world, tmp_path, capfd):
    folder = copy(finished, tmp_path)
    assert curate(world, folder, "--max_rejects", "0.9") == 0
    assert "already finished" in " ".join(capfd.readouterr().out.split())


# --- at the end ---------------------------------------------------------------------------------------------------------


def test_rejects_are_told_by_reason_in_terminal_report_and_verify(data, capfd):
    samples = members(60)
    content = spoilt(samples, [3, 4, 5], "txt")
    path = data([(name, b"no" if name in ("000009.jpg", "000011.jpg") else body) for name, body in content])
    output = path.parent / "out"
    assert curate(path, output) == 0
    out = capfd.readouterr().out
    assert "5 of 60 samples could not be used (8.33%):" in out
    assert "  3 x caption is empty, such as 000003 (00000), 000004 (00000)\n" in out
    assert "  2 x image cannot be decoded, such as 000009 (00000), 000011 (00000)\n" in out
    assert verify.main([str(output)]) == 0
    assert "could not be used: 3 x caption is empty, such as 000003 (00000), 000004 (00000)" in capfd.readouterr().out

    page = (output / "report.html").read_text()
    section = page[page.index('<h2 id="rejects">') : page.index('<h2 id="examples">')]
    assert "5 of 60 samples (8.33%) could not be used." in section
    assert "<h3>3 × caption is empty</h3>" in section
    assert section.count("<img") == 2  # the images of empty captions; the others have none
    assert section.count('class="absent"') == 2

    run, manifest = open_run(str(output)), json.loads((output / "manifest.json").read_text())
    shown = io.StringIO()
    print_counts(run, manifest, Console(file=shown, force_terminal=True, color_system="standard", width=200))
    assert "\x1b[31m5 of 60" in shown.getvalue()
    manifest["counts"] |= {"samples": 6000}
    shown = io.StringIO()
    print_counts(run, manifest, Console(file=shown, force_terminal=True, color_system="standard", width=200))
    assert "\x1b[31m" not in shown.getvalue()


def test_a_page_without_rejects_has_no_section(data):
    path = data(flat(members(30)))
    assert curate(path, path.parent / "out") == 0
    assert 'id="rejects"' not in (path.parent / "out" / "report.html").read_text()


# --- keys of several shards ---------------------------------------------------------------------------------------------


@pytest.fixture
def repeated(data):
    """A run over two shards that have two keys in common, for other pictures."""
    first, second = members(24), members(24, 24)
    second[5], second[9] = (renamed(second[n], "x{}") for n in (5, 9))
    second[5] = [(name.replace("x000029", "000003"), content) for name, content in second[5]]
    second[9] = [(name.replace("x000033", "000007"), content) for name, content in second[9]]
    path = data(flat(first), flat(second))
    assert curate(path, path.parent / "out") == 0
    return path.parent / "out"


def test_keys_of_several_shards_are_counted_and_never_looked_up_by_guess(repeated, capfd):
    assert curate(repeated.parent / "data.yaml", repeated) == 0
    text = "2 keys occur in several shards, such as 000003 (00000, 00001), 000007 (00000, 00001)"
    assert text in capfd.readouterr().out
    assert verify.main([str(repeated)]) == 0
    assert "2 keys occur in several shards" in capfd.readouterr().out

    archive = ConceptArchive.open(repeated)
    rows = {name: archive.table(name).to_pylist() for name in archive.shards}
    with pytest.raises(AmbiguousKey, match="the key 000003 is in the shards 00000 and 00001; ask for one of them, as"):
        archive["000003"]
    with pytest.raises(KeyError):
        archive.select(["000000", "000007"])
    assert "000003" in archive
    assert archive["00000", "000003"] == rows["00000"][3]
    assert archive["00001", "000003"] == rows["00001"][5]
    keys = [("00001", "000007"), "000001", ("00000", "000007"), "000024"]
    assert archive.select(keys).to_pylist() == [rows["00001"][9], rows["00000"][1], rows["00000"][7], rows["00001"][0]]
    assert len(archive.prompts(keys)) == 4
    for missing in (("00001", "000001"), ("00002", "000003"), "999999"):
        with pytest.raises(UnknownKey, match="no archive has the key"):
            archive[missing]
        assert missing not in archive
    assert [(shard.name, row) for shard, row in find(open_run(str(repeated)), ["000003"], 1)] == [
        ("00000", 3),
        ("00001", 5),
    ]


def test_an_older_run_without_the_count_is_searched_as_well(repeated):
    manifest = json.loads((repeated / "manifest.json").read_text())
    del manifest["counts"]["repeated_keys"]
    (repeated / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AmbiguousKey):
        ConceptArchive.open(repeated)["000003"]


def test_a_run_whose_keys_are_unique_says_so(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["counts"]["repeated_keys"] == 0
    assert manifest["repeated_keys"] == []


def test_what_is_remote_is_diagnosed_by_its_first_samples(tmp_path):
    content = write_tar(tmp_path / "a.tar", ORDERS["images first"](members(30))).read_bytes()
    fsspec.filesystem("memory").pipe("/cocu-rejects/a.tar", content)
    items = list(read_samples(io.BytesIO(content), "memory://cocu-rejects/a.tar", "jpg", "txt"))[:30]
    cause, _ = diagnosis.find_cause("memory://cocu-rejects/a.tar", items, "jpg", "txt")
    assert "30 of 30 samples have no caption field (txt); the fields there are jpg (30)" in cause
