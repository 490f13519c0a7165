"""Taking files away that are no longer wanted: of shards that are no longer asked for, and what a killed run left."""

from __future__ import annotations

from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import read_metadata
from curation.run.run import SHARD_FOLDERS, Run


def remove_stale(run: Run) -> None:
    """Take away our files of shards that are no longer asked for."""
    names = {shard.name for shard in run.shards}
    for folder, suffix in [*((folder, ".parquet") for folder in SHARD_FOLDERS), ("stats", ".json")]:
        for name in files.files_in(run.path(folder)):
            path = run.path(folder, name)
            is_stale = name.endswith(suffix) and name.removesuffix(suffix) not in names
            if is_stale and (folder == "stats" or _is_ours(path)):
                files.remove(path)


def _is_ours(path: str) -> bool:
    try:
        return bool(read_metadata(path))
    except CocuError:
        return False


def remove_temporary(run: Run) -> None:
    """Take away what a killed run left half written. Only for the holder of the folder."""
    for folder in ("", "index", "stats", *SHARD_FOLDERS):
        for name in files.files_in(run.path(folder) if folder else run.folder):
            if name.startswith(files.TEMPORARY):
                files.remove(run.path(folder, name) if folder else run.path(name))
