"""Concepts and prompts drawn from archives (docs/method.md §4), for a whole block of archives at once.

Every random number is a hash of (seed, epoch, key of the sample, what it is for): a draw depends on neither the order of
the samples nor the number of processes. Draws without replacement use the Gumbel trick: the M largest of
``logit + Gumbel noise`` are M draws, one after another, from the softmax of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from curation.base.configuration import require_one_of
from curation.base.errors import CocuError
from curation.base.ragged import Ragged
from curation.base.random_numbers import GOLDEN, mix, unit

STREAM = np.uint64(32)  # bits of a counter within one stream of random numbers
LARGEST = 1 - 2.0**-53  # float64 below 1
TEMPLATE_STREAM = 1 << 20  # apart from the streams of every draw
CAPTION_STREAM = TEMPLATE_STREAM + 1


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
        require_one_of("sampler.kind", self.kind, SAMPLERS)
        if self.concepts < 1:
            raise CocuError(f"sampler.concepts: {self.concepts} must be at least 1")
        if not self.temperature > 0:
            raise CocuError(
                f"sampler.temperature: {self.temperature} must be above 0; kind top takes the best concepts"
            )
        if self.replacement and not self.method.random:
            raise CocuError(
                f"sampler.replacement: kind {self.kind} draws nothing at random; leave replacement out, or choose "
                "another kind"
            )
        if self.prompt is not None and "{c}" not in self.prompt:
            raise CocuError(f"sampler.prompt: {self.prompt!r} has no {{c}} for the concept")

    @property
    def method(self) -> SamplingMethod:
        """The row of :data:`SAMPLERS` that ``kind`` names."""
        return SAMPLERS[self.kind]

    def draw(self, seeds: np.ndarray, scores: Ragged, cluster: np.ndarray) -> np.ndarray:
        """Entries drawn from each archive: positions (B, M) int64 into the entries, -1 where an archive has too few.

        seeds (B,) uint64 from :func:`seeds`; scores: B lists of P scores in all, float32, in descending order; cluster
        (P,) int. For kind caption the entries are the caption's concepts, and their scores do not matter.
        """
        archives = _Archives(seeds, scores, cluster, self.temperature)
        if self.replacement:
            draws = [_first(self.method.order(archives, index), archives, 1)[:, 0] for index in range(self.concepts)]
            return np.stack(draws, 1)
        return _first(self.method.order(archives, 0), archives, self.concepts)


class _Archives:
    """A block of archives, with what the draws share."""

    def __init__(self, seeds: np.ndarray, scores: Ragged, cluster: np.ndarray, temperature: float) -> None:
        self.score = scores.values.astype(np.float64)  # (P,)
        self.cluster = cluster  # (P,)
        self.owners = scores.owners  # (P,)
        self.positions = scores.positions  # (P,): within the archive
        self.count = len(scores)  # B
        self.seeds, self.temperature = seeds, temperature

    def gumbel(self, stream: int) -> np.ndarray:
        """Gumbel noise (P,) for every entry."""
        uniforms = uniform(self.seeds[self.owners], stream, self.positions.astype(np.uint64))
        return -np.log(-np.log(uniforms))


def _first(order: np.ndarray, archives: _Archives, count: int) -> np.ndarray:
    """The first ``count`` entries (B, count) of every archive; order (P,) keeps archives together."""
    positions = archives.positions  # archives stay together, so these are the positions in the new order too
    drawn = positions < count
    entries = np.full((archives.count, count), -1, np.int64)
    entries[archives.owners[drawn], positions[drawn]] = order[drawn]
    return entries


# --- orders of drawing ----------------------------------------------------------------------------------------------------
# Each gives the entries of every archive in the order in which draw number ``index`` takes them: (P,) int64.


def _by_cluster(archives: _Archives, index: int) -> np.ndarray:
    """Entries in the order of cluster-guided draws.

    Each cluster puts its entries into a random order; the first ones of all clusters come before the second ones. Among
    entries of equal place, the order is that of clusters drawn by their mean score.
    """
    owners, cluster, score = archives.owners, archives.cluster, archives.score
    if not len(score):
        return np.zeros(0, np.int64)
    within = score / archives.temperature + archives.gumbel(2 * index)
    order = np.lexsort((-within, cluster, owners))
    new = np.diff(owners[order], prepend=-1) != 0
    new |= np.diff(cluster[order], prepend=-1) != 0
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=len(order))

    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    mean = np.empty(len(order))
    mean[order] = np.repeat(np.add.reduceat(score[order], starts) / lengths, lengths)
    between = mean / archives.temperature + archives.gumbel(2 * index + 1)
    return np.lexsort((-between, rank, owners))


def _as_ranked(archives: _Archives, index: int) -> np.ndarray:
    """Entries as they are: in descending score."""
    return np.arange(len(archives.score))


def _by_score(archives: _Archives, index: int) -> np.ndarray:
    """Entries in the order of draws by softmax(score / temperature)."""
    return np.lexsort((-(archives.score / archives.temperature + archives.gumbel(2 * index)), archives.owners))


def _uniformly(archives: _Archives, index: int) -> np.ndarray:
    """Entries in a random order."""
    return np.lexsort((-archives.gumbel(2 * index), archives.owners))


class SamplingMethod(NamedTuple):
    """One way of drawing concepts."""

    order: Callable[[_Archives, int], np.ndarray]
    sentence: str
    random: bool = True
    of_caption: bool = False  # draws from the concepts that the caption mentions, in place of the archive


SAMPLERS = {
    "cluster": SamplingMethod(_by_cluster, "a cluster by its mean score, then a concept within it"),
    "top": SamplingMethod(_as_ranked, "the best ones", random=False),
    "weighted": SamplingMethod(_by_score, "by score, over all concepts of the archive"),
    "caption": SamplingMethod(_uniformly, "uniformly, from what the caption mentions: the baseline", of_caption=True),
}


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


def choose(seeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which of its captions each sample is seen with: (B,) int64, uniform in 0 to counts - 1, by seeds (B,) uint64."""
    return (uniform(seeds, CAPTION_STREAM, np.zeros(1, np.uint64)) * counts).astype(np.int64)


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
    """Numbers between 0 and 1, never either, float64: number ``counter`` of a stream of the generator that ``seeds`` begin.

    Broadcasts.
    """
    with np.errstate(over="ignore"):
        position = (np.uint64(stream) << STREAM) + counter + np.uint64(1)
        bits = mix(seeds + position * GOLDEN)
    return np.minimum(unit(bits) + 2.0**-54, LARGEST)  # the sum for the largest of all is rounded to 1
