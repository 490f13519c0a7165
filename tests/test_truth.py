"""Files that say what is visible, and measuring by them."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import tables

from curation.base.errors import CocuError
from curation.run.run import open_run
from curation.samples import read_sidecars
from curation.tools import measure
from curation.tools.labels import read_labels, rows_of_keys
from curation.tools.quality import LabelledData
from curation.tools.truth import read_labelled, read_labelled_by

ROWS = [
    {"key": "a", "concepts": ["dog", "red ball"], "captions": []},
    {"key": "b", "concepts": ["cat"], "captions": []},
]
SAID = {"a": ["a dog, running", "grass"], "b": ["a cat"]}


def labels_of(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_labels(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("t.json", ROWS),
        ("t.json", "\n".join(map(json.dumps, ROWS))),
        ("t.json", {row["key"]: {"concepts": row["concepts"]} for row in ROWS}),
        ("t.json", {"keys": ["a", "b"], "concepts": [["dog", "red ball"], ["cat"]]}),
        ("t.csv", "key,concepts,more\na,dog; red ball,1\nb,cat,2\n"),
        ("t.csv", "\ufeffmore,concepts,key\n1,dog,a\n2,cat,b\n3,red ball,a\n"),
        ("t.tsv", 'key\tconcepts\na\t["dog", "red ball"]\nb\tcat\n'),
        ("t.parquet", pa.table({"key": ["a", "b"], "concepts": [["dog", "red ball"], ["cat"]], "x": [1, 2]})),
        ("t.parquet", pa.table({"file_name": ["a", "b"], "concepts": ["dog;red ball", "cat"]})),
    ],
)
def test_concepts_by_key(name, content, tmp_path):
    found = labels_of(tmp_path, name, content)
    assert {key: labels.concepts for key, labels in found.of_key.items()} == {"a": ["dog", "red ball"], "b": ["cat"]}
    assert not any(labels.captions for labels in found.of_key.values())
    assert found.judged is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", SAID),
        ("t.json", {"keys": ["a", "b"], "captions": ["a dog, running", "a cat"], "rest": {"a": ["grass"]}}),
        ("t.jsonl", "\n".join(json.dumps({"key": key, "captions": said}) for key, said in SAID.items())),
        ("t.csv", 'key,caption\na,"a dog, running"\na,grass\nb,a cat\n'),
        ("t.parquet", pa.table({"key": ["a", "a", "b"], "caption": ["a dog, running", "grass", "a cat"]})),
        (
            "t.json",
            {
                "images": [{"id": 7, "file_name": "a"}, {"id": 8, "file_name": "b"}],
                "annotations": [
                    {"image_id": 7, "caption": "a dog, running"},
                    {"image_id": 8, "caption": "a cat"},
                    {"image_id": 7, "caption": "grass"},
                ],
            },
        ),
    ],
)
def test_captions_by_key(name, content, tmp_path):
    found = labels_of(tmp_path, name, content)
    assert {key: labels.captions for key, labels in found.of_key.items()} == SAID
    assert not any(labels.concepts for labels in found.of_key.values())


COCO = {
    "images": [{"id": 7, "file_name": "000007.jpg"}, {"id": 8, "file_name": "000008.jpg"}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "wine glass"}],
    "annotations": [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}, {"image_id": 7, "category_id": 3}],
}


def test_instances_of_coco_speak_of_their_categories_only(tmp_path):
    found = labels_of(tmp_path, "instances.json", COCO)
    assert found.judged == ["dog", "wine glass"]
    assert found.of_key["000007.jpg"].concepts == ["wine glass", "wine glass"]
    assert found.of_key["000008.jpg"].concepts == []  # nothing of the categories is on it


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.json", "{", "not JSON"),
        ("t.json", "3", "key and concepts or captions"),
        ("t.json", "{}", "says nothing of any image"),
        ("t.json", '{"a": 3}', "'a': 3 is no text"),
        ("t.json", {"keys": ["a"], "captions": []}, "0 captions for 1 keys"),
        ("t.json", COCO | {"categories": []}, "COCO's json, but for 3, which is missing"),
        ("t.jsonl", '{"key": "a"}\n', "row 1: needs key, and concepts or captions, has key"),
        ("t.jsonl", "{]\n", "line 1 is not JSON"),
        ("t.csv", "name,text\na,b\n", "row 1: needs key"),
        ("t.parquet", "junk", "not a Parquet file"),
    ],
)
def test_files_that_say_nothing_are_errors_naming_them(name, content, words, tmp_path):
    with pytest.raises(CocuError, match=words) as raised:
        labels_of(tmp_path, name, content)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "others", "expected"),
    [
        (["a", "b"], ["b", "c"], [(1, "b")]),
        (["x/a.jpg", "b"], ["y/b.PNG", "a.jpeg"], [(0, "a.jpeg"), (1, "y/b.PNG")]),
        (["0500_30_7", "0501_31_8"], ["30_7.jpg", "31_8.jpg"], [(0, "30_7.jpg"), (1, "31_8.jpg")]),
        (["0001_1", "0002_1"], ["0001_1"], [(0, "0001_1")]),  # what matches as it is needs no other reading
        (["a"], ["b"], []),
    ],
)
def test_keys_are_found_as_they_are_or_by_file_names(keys, others, expected):
    rows, found = rows_of_keys(keys, others)
    assert list(zip(rows.tolist(), found, strict=True)) == expected


# --- measured -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(world) -> dict[str, list[str]]:
    """What the sidecars say, by key."""
    sidecars = [item for path in sorted(world.parent.glob("*.tar")) for item in read_sidecars(str(path))]
    parsed = {key: json.loads(content) for key, content in sidecars}
    return {key: values["objects"] + values["stuff"] for key, values in parsed.items()}


def same(one: LabelledData, other: LabelledData) -> bool:
    return [sorted(set(row)) for row in lists(one)] == [sorted(set(row)) for row in lists(other)]


def lists(data: LabelledData) -> list[list[int]]:
    return [data.visible.slice(row, row + 1).values.tolist() for row in range(len(data.visible))]


def test_a_file_with_the_content_of_the_sidecars_measures_the_same(finished, truth, tmp_path):
    run = open_run(str(finished))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({key: {"concepts": names} for key, names in truth.items()}))
    by_file, by_sidecars = read_labelled_by(run, str(path)), read_labelled(run, ["objects", "stuff"])
    assert same(by_file, by_sidecars)
    archives = measure.curate_all(run, by_file)
    results = [measure.measure(archives, data) for data in (by_file, by_sidecars)]
    assert str(results[0]) == str(results[1])  # NaN is not equal to itself


def test_a_truth_of_some_images_measures_those(finished, truth, tmp_path, capsys):
    run = open_run(str(finished))
    chosen = sorted(truth)[3:40:4]
    path = tmp_path / "truth.csv"
    path.write_text("key,caption\n" + "".join(f"{key}.jpg,{' and '.join(truth[key])}\n" for key in chosen))
    data = read_labelled_by(run, str(path))
    keys = [key for table in tables(finished, "archives").values() for key in table["key"].to_pylist()]
    assert [keys[row] for row in data.rows] == chosen
    archives = measure.curate_all(run, data)["vision", "cocu"]
    written = [row["concepts"] for table in tables(finished, "archives").values() for row in table.to_pylist()]
    names = pq.read_table(finished / "vocabulary.parquet")["concept"].to_pylist()
    found = [[names[c] for c in archives.slice(row, row + 1).values] for row in range(len(chosen))]
    assert found == [[item["concept"] for item in written[row]] for row in data.rows]

    assert measure.main([str(finished), "--truth", str(path), "--without", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(chosen)} images" in printed
    assert "without the 2 most frequent: " in printed


def test_concepts_that_the_truth_does_not_speak_of_are_not_judged(finished, truth, tmp_path):
    run = open_run(str(finished))
    keys = sorted(truth)
    content = {
        "images": [{"id": number, "file_name": key + ".jpg"} for number, key in enumerate(keys)],
        "categories": [{"id": 1, "name": "apple"}],
        "annotations": [
            {"image_id": number, "category_id": 1} for number, key in enumerate(keys) if "apple" in truth[key]
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    data = read_labelled_by(run, str(path))
    result = measure.measure(measure.curate_all(run, data), data)["vision", "cocu"]
    rows = {row["key"]: row["concepts"] for table in tables(finished, "archives").values() for row in table.to_pylist()}
    named = [key for key, items in rows.items() if "apple" in [item["concept"] for item in items]]
    assert result.precision[1] == pytest.approx(sum("apple" in truth[key] for key in named) / len(named))
    assert result.concepts == pytest.approx(len(named) / len(rows))


def test_a_truth_of_other_images_is_an_error_with_keys_of_both(finished, tmp_path, capsys):
    path = tmp_path / "truth.jsonl"
    path.write_text('{"key": "elsewhere", "concepts": ["apple"]}\n')
    assert measure.main([str(finished), "--truth", str(path)]) == 1
    line = " ".join(capsys.readouterr().err.split())
    assert "none of its keys (elsewhere) is a key of" in line
    assert "000000, 000001" in line
