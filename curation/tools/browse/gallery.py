"""Which archives of a concept to show, and in which order. Pure functions over the arrays of its postings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from curation.tools.browse.catalogue import Postings

VIEWS = {  # of a concept: name and what it shows
    "surest": "the best scores first",
    "doubtful": "the lowest scores first",
    "omitted": "where the caption leaves the concept out, the best scores first",
    "named": "where the caption mentions the concept, the best scores first",
    "clusters": "by the best other concept of its cluster",
}
GROUPS = 12  # clusters on a page
IN_GROUP = 8  # archives of each


class Group(NamedTuple):
    """The archives in which a concept is clustered with the same other concept."""

    companion: int  # id, -1 where the concept has a cluster of its own
    size: int
    entries: np.ndarray  # positions in the postings of the first few, the best score first


def ordered(postings: Postings, view: str, companion: int | None = None) -> np.ndarray:
    """Positions (n,) of the entries that a view shows, in its order; only those with a companion, where one is given."""
    if view == "omitted":
        positions = np.flatnonzero(~postings.said)
    elif view == "named":
        positions = np.flatnonzero(postings.said)
    else:
        positions = np.arange(len(postings))
    if companion is not None:
        positions = positions[postings.companion[positions] == companion]
    return positions[::-1] if view == "doubtful" else positions


def groups(postings: Postings, most: int = GROUPS, each: int = IN_GROUP) -> list[Group]:
    """The largest groups of one companion."""
    ids, counts = np.unique(postings.companion, return_counts=True)
    largest = np.lexsort((ids, -counts))[:most]
    return [
        Group(int(ids[at]), int(counts[at]), np.flatnonzero(postings.companion == ids[at])[:each]) for at in largest
    ]
