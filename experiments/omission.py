"""How often captions omit a class that is visible: what Concept Curation is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from curation.archive import ConceptArchive
from curation.concepts import concept_key

EDGES = (0.6, 0.8)  # between classes that captions omit less often, often, and nearly always
NAMES = ("omitted below 60%", "omitted 60 to 80%", "omitted above 80%")


def omitted_shares(folder: Path, classes: Sequence[str]) -> np.ndarray:
    """Of the archives in ``folder`` that hold a class, the share whose caption does not mention it: (C,) in 0..1.

    In a folder of the truth, these are the pictures where the class is visible. nan for a class that no archive holds.
    """
    archive = ConceptArchive.open(str(folder))
    held = count_archives(archive)
    omitted = count_archives(archive.filter(omitted=True))
    keys = [concept_key(name) for name in classes]
    return np.array([omitted[key] / held[key] if held[key] else np.nan for key in keys])


def count_archives(archive: ConceptArchive) -> Counter[tuple[str, ...]]:
    """How many archives hold each concept, by the key that makes singular and plural one."""
    counts: Counter[str] = Counter()
    for table in archive.tables():
        concepts = pc.list_flatten(table["concepts"]).combine_chunks().field("concept").dictionary_decode()
        for item in pc.value_counts(concepts).to_pylist():
            counts[item["values"]] += item["counts"]
    return Counter({concept_key(name): count for name, count in counts.items()})


def groups(shares: np.ndarray) -> np.ndarray:
    """The group (C,) of each class: 0, 1 or 2 as NAMES says, -1 for unknown.

    >>> groups(np.array([0.2, 0.6, 0.9, np.nan])).tolist()
    [0, 1, 2, -1]
    """
    return np.where(np.isnan(shares), -1, np.digitize(shares, EDGES))


def by_group(iou: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean IoU (..., 3) of the classes of each group, from iou (..., C); nan for a group without classes that occur."""
    columns = [iou[..., group == number] for number in range(len(NAMES))]
    means = [np.nanmean(part, -1) if np.isfinite(part).any() else np.full(iou.shape[:-1], np.nan) for part in columns]
    return np.stack(means, -1)
