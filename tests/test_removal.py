"""Folders that are removed while another process writes into them."""

from __future__ import annotations

import errno

import pytest
from fsspec.implementations.local import LocalFileSystem

from curation.base import files
from curation.base.errors import OutputError


def test_a_folder_is_removed_although_files_come_and_go(tmp_path, monkeypatch):
    """First a file arrives when the folder seemed empty, then one is gone before it was its turn."""
    folder, errors = tmp_path / "notes", [OSError(errno.ENOTEMPTY, "Directory not empty"), FileNotFoundError()]
    (folder / "embed").mkdir(parents=True)
    really_remove = LocalFileSystem.rm

    def remove(*arguments, **options):
        if errors:
            (folder / "embed" / f"{len(errors)}.json").touch()
            raise errors.pop(0)
        really_remove(*arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "rm", remove)
    files.remove(str(folder))
    assert errors == []
    assert not folder.exists()


def test_a_folder_that_never_becomes_empty_is_named(tmp_path, monkeypatch):
    def never(*arguments, **options):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(LocalFileSystem, "rm", never)
    monkeypatch.setattr(files, "EMPTYING", 0)
    with pytest.raises(OutputError, match=f"^{tmp_path}: cannot be removed, .* end that one"):
        files.remove(str(tmp_path))
