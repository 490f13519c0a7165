"""Concepts and prompts drawn from archives (docs/method.md §4), for a whole block of archives at once.

Every random number is a hash of (seed, epoch, key of the sample, what it is for): a draw depends on neither the order of
the samples nor the number of processes. Draws without replacement use the Gumbel trick: the M largest of
``logit + Gumbel noise`` are M draws, one after another, from the softmax of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from curation.base.errors import CocuError
from curation.base.ragged import row_numbers
from curation.base.random_numbers import GOLDEN, mix, unit

KINDS = ("cluster", "top", "weighted", "caption")
STREAM = np.uint64(32)  # bits of a counter within one stream of random numbers
TEMPLATE_STREAM = 1 << 20  # apart from the streams of every draw


@dataclass(frozen=True)
class Sampler:
    """How concepts are drawn from an archive each time that a sample is seen.

    Attributes:
        kind: cluster (a cluster by softmax(mean score / temperature), then a concept in it by softmax(score / temperature);
            different clusters while there are that many), top (the best ones), weighted (softmax(score / temperature) over
            all), or caption (the concepts that the caption mentions, uniformly: the GroupViT baseline).
        concepts: M, the number of concepts and so of prompts of a sample.
        temperature: of the softmax over scores, which are about 1 to 2: at 1 the draw is close to uniform.
        replacement: draw each of the M independently, so that a concept may come twice, as the released code does.
        prompt: a sentence with {c} for every concept, in place of one of the 80 ImageNet templates at random.
    """

    kind: str = "cluster"
    concepts: int = 3
    temperature: float = 1.0
    replacement: bool = False
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if self.kind not in KINDS:
            raise CocuError(f"sampler.kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.concepts < 1:
            raise CocuError(f"sampler.concepts: {self.concepts} must be at least 1")
        if not self.temperature > 0:
            raise CocuError(f"sampler.temperature: {self.temperature} must be above 0; kind top takes the best ones")
        if self.kind == "top" and self.replacement:
            raise CocuError("sampler.replacement: the best concepts are not drawn; leave it out with kind top")
        if self.prompt is not None and "{c}" not in self.prompt:
            raise CocuError(f"sampler.prompt: {self.prompt!r} has no {{c}} for the concept")

    def draw(self, seeds: np.ndarray, offsets: np.ndarray, score: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """Entries drawn from each archive: positions (B, M) int64 into the entries, -1 where an archive has too few.

        seeds (B,) uint64 from :func:`seeds`; offsets (B + 1,), score (P,) float32, cluster (P,) int: the archives as CSR,
        in descending score. For kind caption the entries are the caption's concepts, and their scores do not matter.
        """
        archives = _Archives(seeds, offsets, score, cluster, self.temperature)
        if self.kind == "top":
            order = np.arange(len(score))
        elif self.replacement:
            return np.stack(
                [_first(self._ordered(archives, index), archives, 1)[:, 0] for index in range(self.concepts)], 1
            )
        else:
            order = self._ordered(archives, 0)
        return _first(order, archives, self.concepts)

    def _ordered(self, archives: _Archives, index: int) -> np.ndarray:
        """The entries of each archive in the order in which draw number ``index`` takes them."""
        if self.kind == "cluster":
            return _by_cluster(archives, index)
        logits = archives.score / self.temperature if self.kind == "weighted" else 0
        return np.lexsort((-(logits + archives.gumbel(2 * index)), archives.owner))


class _Archives:
    """A block of archives as CSR, with what the draws share."""

    def __init__(
        self, seeds: np.ndarray, offsets: np.ndarray, score: np.ndarray, cluster: np.ndarray, temperature: float
    ) -> None:
        self.offsets, self.score, self.cluster = offsets, score.astype(np.float64), cluster
        self.owner = row_numbers(offsets)  # (P,)
        self.seeds, self.temperature = seeds, temperature
        self.place = (np.arange(len(score)) - offsets[self.owner]).astype(np.uint64)  # within the archive

    def gumbel(self, stream: int) -> np.ndarray:
        """Gumbel noise (P,) for every entry."""
        noise: np.ndarray = -np.log(-np.log(uniform(self.seeds[self.owner], stream, self.place)))
        return noise


def _by_cluster(archives: _Archives, index: int) -> np.ndarray:
    """Entries in the order of cluster-guided draws.

    Each cluster puts its entries into a random order; the first ones of all clusters come before the second ones. Among
    entries of equal place, the order is that of clusters drawn by their mean score.
    """
    owner, cluster, score = archives.owner, archives.cluster, archives.score
    if not len(score):
        return np.zeros(0, np.int64)
    within = score / archives.temperature + archives.gumbel(2 * index)
    order = np.lexsort((-within, cluster, owner))
    new = np.diff(owner[order], prepend=-1) != 0
    new |= np.diff(cluster[order], prepend=-1) != 0
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=len(order))
    mean = np.add.reduceat(score[order], starts) / lengths
    rank, of_cluster = np.empty(len(order), np.int64), np.empty(len(order))
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    of_cluster[order] = np.repeat(mean, lengths)
    between = of_cluster / archives.temperature + archives.gumbel(2 * index + 1)
    return np.lexsort((-between, rank, owner))


def _first(order: np.ndarray, archives: _Archives, count: int) -> np.ndarray:
    """The first ``count`` entries (B, count) of every archive; order (P,) keeps archives together."""
    place = archives.place.astype(np.int64)  # owners are in place already, so position = place in the new order
    taken = place < count
    found = np.full((len(archives.offsets) - 1, count), -1, np.int64)
    found[archives.owner[taken], place[taken]] = order[taken]
    return found


# --- prompts --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def templates() -> tuple[str, ...]:
    """The 80 prompt templates that OpenAI published for ImageNet, with {c} for the concept."""
    text = resources.files("curation.archive").joinpath("templates.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def prompts(
    sampler: Sampler, seeds: np.ndarray, drawn: np.ndarray, names: list[str], captions: list[str]
) -> list[list[str]]:
    """M prompts for each of B samples: a drawn concept in a random template, the caption where too few were drawn.

    seeds (B,) uint64; drawn (B, M) int: positions into ``names``, the concept names of the entries, -1 for none.
    """
    known = (sampler.prompt,) if sampler.prompt else templates()
    counter = np.arange(drawn.shape[1], dtype=np.uint64)
    chosen = (uniform(seeds[:, None], TEMPLATE_STREAM, counter) * len(known)).astype(np.int64)  # (B, M)
    return [
        [
            caption if entry < 0 else known[number].replace("{c}", names[entry])
            for number, entry in zip(*row, strict=True)
        ]
        for caption, *row in zip(captions, chosen.tolist(), drawn.tolist(), strict=True)
    ]


# --- random numbers -------------------------------------------------------------------------------------------------------


def seeds(keys: list[str], seed: int, epoch: int) -> np.ndarray:
    """A random number (B,) uint64 for every sample, from its key and the epoch."""
    padded = np.char.encode(np.array(keys, dtype=np.str_), "utf-8")
    width = -(-max(padded.dtype.itemsize, 1) // 8) * 8
    words = padded.astype(f"S{width}").view("<u8").reshape(len(keys), -1)  # (B, W): the bytes, padded with zeros
    state = np.full(len(keys), mix(mix(np.array(seed, np.uint64)) ^ np.uint64(epoch)))
    for word in words.T:  # padding does not count, so that a key's number does not depend on the keys beside it
        state = np.where(word == 0, state, mix(state ^ word))
    return state


def uniform(seeds: np.ndarray, stream: int, counter: np.ndarray) -> np.ndarray:
    """Numbers in (0, 1), float64: number ``counter`` of a stream of the generator that ``seeds`` begin. Broadcasts."""
    with np.errstate(over="ignore"):
        position = (np.uint64(stream) << STREAM) + counter + np.uint64(1)
        bits = mix(seeds + position * GOLDEN)
    return unit(bits) + 2.0**-54
