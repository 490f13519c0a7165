"""Concepts drawn from archives: frequencies against the formulas of docs/method.md §4, and what a draw may depend on."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.archive import Sampler, prompts, seeds, templates
from curation.base.errors import CocuError
from curation.base.ragged import Ragged

SCORES = np.array([1.9, 1.7, 1.6, 1.2, 1.1], np.float32)
CLUSTERS = np.array([0, 1, 0, 2, 1], np.int16)
DRAWS = 20000
TAU = 0.3


def softmax(values):
    weights = np.exp(np.array(values, np.float64) / TAU)
    return weights / weights.sum()


def many(sampler):
    """The same archive sampled under many keys: (DRAWS, M)."""
    numbers = seeds([str(key) for key in range(DRAWS)], 0, 0)
    offsets = np.arange(DRAWS + 1) * len(SCORES)
    drawn = sampler.draw(numbers, Ragged(offsets, np.tile(SCORES, DRAWS)), np.tile(CLUSTERS, DRAWS))
    return drawn - offsets[:-1, None]


def cluster_probabilities():
    return dict(zip(range(3), softmax([SCORES[cluster == CLUSTERS].mean() for cluster in range(3)]), strict=True))


def within(cluster):
    members = np.flatnonzero(cluster == CLUSTERS)
    return dict(zip(members.tolist(), softmax(SCORES[members]), strict=True))


def without_replacement(probabilities, count):
    """Probability of every ordered outcome of draws one after another."""
    found = {}
    for outcome in permutations(probabilities, count):
        left, chance = 1.0, 1.0
        for item in outcome:
            chance *= probabilities[item] / left
            left -= probabilities[item]
        found[outcome] = chance
    return found


def frequencies(drawn):
    outcomes, counts = np.unique(drawn, axis=0, return_counts=True)
    return {tuple(map(int, outcome)): count / len(drawn) for outcome, count in zip(outcomes, counts, strict=True)}


def assert_close(found, expected):
    for outcome in {*found, *expected}:
        chance = expected.get(outcome, 0)
        assert found.get(outcome, 0) == pytest.approx(
            chance, abs=4.5 * (chance * (1 - chance) / DRAWS) ** 0.5 + 1e-12
        ), outcome


def test_cluster_draws_follow_the_formula():
    """A cluster by softmax(mean score), then a concept by softmax(score); the next one from another cluster."""
    expected = {}
    for first, second in permutations(range(3), 2):
        chance = without_replacement(cluster_probabilities(), 2)[first, second]
        for a, chance_a in within(first).items():
            for b, chance_b in within(second).items():
                expected[a, b] = chance * chance_a * chance_b
    assert_close(frequencies(many(Sampler("cluster", 2, TAU))), expected)


def test_cluster_draws_with_replacement_are_independent():
    single = {
        concept: chance * inner
        for cluster, chance in cluster_probabilities().items()
        for concept, inner in within(cluster).items()
    }
    expected = {(a, b): single[a] * single[b] for a in single for b in single}
    assert_close(frequencies(many(Sampler("cluster", 2, TAU, replacement=True))), expected)


def test_weighted_draws_follow_the_formula():
    chances = dict(enumerate(softmax(SCORES)))
    assert_close(frequencies(many(Sampler("weighted", 3, TAU))), without_replacement(chances, 3))
    independent = {(a, b): chances[a] * chances[b] for a in chances for b in chances}
    assert_close(frequencies(many(Sampler("weighted", 2, TAU, replacement=True))), independent)


def test_caption_draws_are_uniform_and_top_takes_the_best():
    assert_close(frequencies(many(Sampler("caption", 2))), without_replacement(dict.fromkeys(range(5), 0.2), 2))
    assert (many(Sampler("top", 3)) == [0, 1, 2]).all()


def test_when_clusters_run_out_each_gives_a_second_concept():
    drawn = many(Sampler("cluster", 5, TAU))
    assert (np.sort(drawn, axis=1) == np.arange(5)).all()
    first = CLUSTERS[drawn[:, :3]]
    assert (np.sort(first, axis=1) == [0, 1, 2]).all()
    # Clusters 0 and 1 have a second concept each; which comes first follows the clusters' scores, drawn anew.
    chance = cluster_probabilities()
    assert (CLUSTERS[drawn[:, 3]] == 0).mean() == pytest.approx(chance[0] / (chance[0] + chance[1]), abs=0.02)


@st.composite
def blocks(draw):
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    size = sum(lengths)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    score = np.round(rng.random(size), 1).astype(np.float32)  # with ties
    keys = draw(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20),
                         min_size=len(lengths), max_size=len(lengths), unique=True))  # fmt: skip
    return keys, np.concatenate([[0], np.cumsum(lengths)]), score, rng.integers(0, 3, size).astype(np.int16)


SAMPLERS = [
    Sampler(kind, 3, 0.5, replacement)
    for kind in ("cluster", "weighted", "caption", "top")
    for replacement in (False, True)
    if not (kind == "top" and replacement)
]


@settings(deadline=None, max_examples=60)
@given(blocks(), st.sampled_from(SAMPLERS))
def test_a_draw_depends_on_its_own_key_and_archive_only(block, sampler):
    keys, offsets, score, cluster = block
    together = sampler.draw(seeds(keys, 1, 2), Ragged(offsets, score), cluster)
    for row, key in enumerate(keys):
        part = slice(offsets[row], offsets[row + 1])
        length = part.stop - part.start
        alone = sampler.draw(seeds([key], 1, 2), Ragged(np.array([0, length]), score[part]), cluster[part])[0]
        found = np.where(together[row] < 0, -1, together[row] - offsets[row])
        assert found.tolist() == alone.tolist()
        held = found[found >= 0]
        assert (held < length).all()
        if sampler.replacement:
            assert len(held) == (3 if length else 0)
            continue
        assert len(held) == len(set(held)) == min(3, length)
        if sampler.kind == "cluster":
            clusters = cluster[part][held]
            assert len(set(clusters)) == min(3, len(set(cluster[part])))


def test_epoch_and_seed_change_the_draw_and_nothing_else_does():
    numbers = {(seed, epoch): seeds(["a", "b"], seed, epoch).tolist() for seed in range(3) for epoch in range(3)}
    assert len({number for pair in numbers.values() for number in pair}) == 18
    assert seeds(["b", "a much longer key than before", "ä"], 0, 0)[0] == seeds(["b"], 0, 0)[0]


def mixed(state):
    """The finaliser of SplitMix64, on Python's integers."""
    bits = (1 << 64) - 1
    state = (state + 0x9E3779B97F4A7C15) & bits
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & bits
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & bits
    return state ^ state >> 31


def test_numbers_of_keys_are_the_same_for_ever():
    """Eight bytes of the key at a time, so that runs can be repeated on other machines."""
    for key, seed, epoch in (("000000007", 0, 0), ("äb", 3, 7)):
        state, content = mixed(mixed(seed) ^ epoch), key.encode()
        for start in range(0, len(content), 8):
            state = mixed(state ^ int.from_bytes(content[start : start + 8], "little"))
        assert seeds([key], seed, epoch).tolist() == [state]


def test_templates_are_open_clips():
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    assert list(templates()) == [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]


def test_prompts_put_concepts_into_templates_and_captions_where_there_are_too_few():
    numbers = seeds([str(key) for key in range(4000)], 0, 0)
    drawn = np.tile([1, 0, -1], (4000, 1))
    made = prompts(Sampler(concepts=3), numbers, drawn, ["a dog", "cat"], [f"caption {key}" for key in range(4000)])
    assert [row[2] for row in made] == [f"caption {key}" for key in range(4000)]
    for place, name in ((0, "cat"), (1, "a dog")):
        used = [row[place] for row in made]
        assert {*used} == {template.replace("{c}", name) for template in templates()}
        assert max(used.count(text) for text in {*used}) < 100  # 50 expected
    fixed = Sampler(prompt="just {c}")
    assert prompts(fixed, numbers[:1], drawn[:1], ["dog", "cat"], ["x"]) == [["just cat", "just dog", "x"]]


def test_templates_differ_between_the_prompts_of_a_sample_and_follow_neither_concepts_nor_draws():
    """Of 4,000 samples: two prompts share one of 80 templates by chance, and no template says what was drawn."""
    numbers = seeds([str(key) for key in range(4000)], 0, 0)
    known = {template: number for number, template in enumerate(templates())}

    def chosen(drawn):
        made = prompts(Sampler(), numbers, drawn, ["{c}"] * 3, ["-"] * 4000)
        return np.array([[known[text] for text in row] for row in made])  # (4000, 3)

    first = chosen(np.zeros((4000, 3), np.int64))
    assert np.array_equal(first, chosen(np.tile([2, 0, 1], (4000, 1))))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (first[:, one] == first[:, other]).mean() < 0.03

    equal = Ragged.from_lists([[1.0] * 3] * 4000, np.float32)
    for kind in ("weighted", "cluster"):
        for sampler in (Sampler(kind), Sampler(kind, replacement=True)):
            drawn = sampler.draw(numbers, equal, np.tile([0, 1, 2], 4000)) % 3  # (4000, 3)
            for template, entry, number in product(first.T, range(3), range(3)):
                assert abs(np.corrcoef(template, drawn[:, number] == entry)[0, 1]) < 0.07  # 4.4 deviations


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "best"}, "sampler.kind: 'best' is not one of cluster"),
        ({"concepts": 0}, "sampler.concepts"),
        ({"temperature": 0.0}, "sampler.temperature"),
        ({"temperature": float("nan")}, "sampler.temperature"),
        ({"kind": "top", "replacement": True}, "sampler.replacement"),
        ({"prompt": "a photo"}, "sampler.prompt"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(CocuError, match=message):
        Sampler(**values)
