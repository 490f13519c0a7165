"""Folders of clip-retrieval."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import samples
from curation.base.errors import CocuError
from curation.samples import Reject, Sample

# --- clip-retrieval folders --------------------------------------------------------------------------------------------


def make_import(folder, part=0, rows=3, width=4, columns=None, embeddings=None):
    """One part of a clip-retrieval folder; returns the path of its embeddings."""
    (folder / "img_emb").mkdir(parents=True, exist_ok=True)
    (folder / "metadata").mkdir(exist_ok=True)
    if columns is None:
        columns = {"key": [f"k{row}" for row in range(rows)], "caption": [f"dog {row}" for row in range(rows)]}
    pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{part}.parquet")
    path = folder / "img_emb" / f"img_emb_{part}.npy"
    np.save(path, np.ones((rows, width), np.float16) if embeddings is None else embeddings)
    return str(path)


def test_parts_are_ordered_by_number_and_named_by_it(tmp_path):
    paths = {part: make_import(tmp_path, part) for part in (10, 2, 0)}
    (tmp_path / "img_emb" / "notes.npy").write_bytes(b"")
    expected = [samples.Shard(index, str(part), paths[part]) for index, part in enumerate((0, 2, 10))]
    assert samples.list_imports(str(tmp_path)) == expected
    assert samples.list_imports(f"{tmp_path}/") == expected


def test_zero_padded_parts_of_clip_retrieval_keep_their_names(tmp_path):
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    for part in ("0010", "0009"):
        (tmp_path / "img_emb" / f"img_emb_{part}.npy").write_bytes(b"")
        (tmp_path / "metadata" / f"metadata_{part}.parquet").write_bytes(b"")
    assert [shard.name for shard in samples.list_imports(str(tmp_path))] == ["0009", "0010"]


def test_folder_without_embeddings_is_an_error_naming_it(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CocuError, match=str(folder)):
            samples.list_imports(str(folder))


def test_part_without_metadata_is_an_error_naming_the_file(tmp_path):
    make_import(tmp_path, 0)
    make_import(tmp_path, 1)
    (tmp_path / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(CocuError, match=r"metadata_1\.parquet is missing"):
        samples.list_imports(str(tmp_path))


def test_import_is_read_in_order(tmp_path):
    embeddings = np.arange(12, dtype=np.float16).reshape(3, 4)
    keys, captions, found = samples.read_import(make_import(tmp_path, embeddings=embeddings))
    assert keys == ["k0", "k1", "k2"]
    assert captions == ["dog 0", "dog 1", "dog 2"]
    np.testing.assert_array_equal(found, embeddings)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image_path": ["p"], "caption": ["a"]}, ["p"]),
        ({"image_path": ["p"], "caption": ["a"], "key": ["k"]}, ["k"]),
        ({"key": ["k"], "caption": ["a"], "similarity": [0.3]}, ["k"]),
    ],
)
def test_key_column_comes_before_image_path(columns, expected, tmp_path):
    assert samples.read_import(make_import(tmp_path, rows=1, columns=columns))[0] == expected


@pytest.mark.parametrize("columns", [{"key": ["k"]}, {"image_path": ["p"], "text": ["a"]}, {"caption": ["a"]}])
def test_missing_columns_are_an_error_naming_file_and_columns(columns, tmp_path):
    with pytest.raises(CocuError, match=r"metadata_0\.parquet") as raised:
        samples.read_import(make_import(tmp_path, rows=1, columns=columns))
    assert all(name in str(raised.value) for name in columns)


@pytest.mark.parametrize("shape", [(2, 4), (4, 4), (3,), (3, 2, 2)])
def test_embeddings_that_do_not_fit_the_metadata_are_an_error(shape, tmp_path):
    with pytest.raises(CocuError, match=r"img_emb_0\.npy.*3 rows"):
        samples.read_import(make_import(tmp_path, rows=3, embeddings=np.ones(shape, np.float16)))


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("wrapped", [True, False])
def test_pickled_embeddings_are_refused_and_never_executed(wrapped, tmp_path):
    bomb = Bomb(str(tmp_path / "executed"))
    path = make_import(tmp_path, rows=1, embeddings=np.array([bomb], dtype=object) if wrapped else None)
    if not wrapped:
        with open(path, "wb") as stream:
            pickle.dump(bomb, stream)
    with pytest.raises((CocuError, ValueError)):
        samples.read_import(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00"])
def test_damaged_embeddings_raise_a_curation_error_naming_the_file(content, tmp_path):
    path = make_import(tmp_path)
    with open(path, "wb") as stream:
        stream.write(content)
    with pytest.raises(CocuError, match=r"img_emb_0\.npy"):
        samples.read_import(path)


def test_damaged_metadata_raises_a_curation_error_naming_the_file(tmp_path):
    path = make_import(tmp_path)
    (tmp_path / "metadata" / "metadata_0.parquet").write_bytes(b"junk")
    with pytest.raises(CocuError, match=r"metadata_0\.parquet"):
        samples.read_import(path)


@pytest.mark.parametrize(
    ("caption", "row", "reason"),
    [
        (None, [1, 0], "caption is empty"),
        ("", [1, 0], "caption is empty"),
        (" \n", [1, 0], "caption is empty"),
        ("a dog", [0, 0], "zero or not finite"),
        ("a dog", [np.nan, 1], "zero or not finite"),
        ("a dog", [1, -np.inf], "zero or not finite"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_unusable_row_of_an_import_is_rejected(caption, row, reason, dtype):
    checked = samples.check_import(["k", "l"], [caption, "fine"], np.array([row, [0.6, 0.8]], dtype), set())
    assert isinstance(checked[0], Reject)
    assert checked[0].key == "k"
    assert reason in checked[0].reason
    assert checked[1] == Sample("l", b"", "fine")


def test_small_and_large_half_precision_embeddings_are_not_taken_for_zero_or_infinite():
    rows = np.array([[6e-8, 0], [65504, 65504]], np.float16)
    assert all(isinstance(item, Sample) for item in samples.check_import(["a", "b"], ["x", "y"], rows, set()))


def test_duplicate_keys_of_an_import_are_rejected_across_blocks():
    seen: set[str] = set()
    ones = np.ones((2, 2), np.float32)
    assert samples.check_import(["a", "a"], ["x", "y"], ones, seen) == [
        Sample("a", b"", "x"),
        Reject("a", "duplicate key"),
    ]
    assert samples.check_import(["b", "a"], ["x ", "y"], ones, seen) == [
        Sample("b", b"", "x"),
        Reject("a", "duplicate key"),
    ]


def test_row_of_an_import_without_a_key_is_rejected():
    (item,) = samples.check_import([None], ["a dog"], np.ones((1, 2), np.float32), set())
    assert isinstance(item, Reject)
