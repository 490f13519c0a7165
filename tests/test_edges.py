"""Numbers at the edge of what their type holds: random ones, norms, clusters, support, rows of a file, long messages."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from curation import config
from curation.archive import SCHEMA, Sampler, archive_batch, prompts, sampling, templates
from curation.base.embeddings import has_direction, normalise
from curation.base.errors import CocuError
from curation.base.parquet import parquet_writer
from curation.base.ragged import Ragged
from curation.clustering import LAST_CLUSTER, single_clusters
from curation.run.stages.archives import write_whole
from curation.samples import Reject, check_import, check_sample

# --- random numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 1, 2**64 - 1, 2**64 - 2048, 2**63])
def test_uniform_numbers_are_within_0_and_1(bits, monkeypatch):
    monkeypatch.setattr(sampling, "mix", lambda state: np.full(np.shape(state), bits, np.uint64))
    seeds = np.zeros(2, np.uint64)
    numbers = sampling.uniform(seeds, 0, np.arange(2, dtype=np.uint64))
    assert ((numbers > 0) & (numbers < 1)).all()
    assert np.isfinite(-np.log(-np.log(numbers))).all()
    drawn = np.zeros((2, 3), np.int64)  # a template is chosen for each
    for row in prompts(Sampler(), seeds, drawn, ["dog"], ["a", "b"]):
        assert all(prompt in {template.replace("{c}", "dog") for template in templates()} for prompt in row)


@given(st.integers(1, 10_000))
def test_the_largest_uniform_number_is_below_any_count_of_choices(count):
    assert int(sampling.LARGEST * count) == count - 1


# --- norms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1e-44, 1e-30, 1e-16, 1.0, 1e16, 1e26, 3e38, 1e-300, 1e300])
def test_rows_of_any_length_have_a_direction(length, dtype):
    with np.errstate(over="ignore"):
        rows = (np.array([[0.6, 0.8], [-1, 0]]) * length).astype(dtype)
    if not np.isfinite(rows).all() or not rows.any():
        return
    assert has_direction(rows).all()
    digits = 0.3 if length == 1e-44 else 1e-6  # the smallest numbers of fp32 have no digits left
    assert normalise(rows) == pytest.approx(np.array([[0.6, 0.8], [-1, 0]]), abs=digits)
    checked = check_import(["a", "b"], ["a dog", "a cat"], rows, set())
    assert not [item for item in checked if isinstance(item, Reject)]


def test_rows_without_a_direction_are_rejected():
    rows = np.array([[0, 0], [np.nan, 1], [np.inf, 0], [1, 1]], np.float32)
    assert has_direction(rows).tolist() == [False, False, False, True]
    reasons = [getattr(item, "reason", "") for item in check_import(list("abcd"), ["x"] * 4, rows, set())]
    assert reasons == ["embedding is zero or not finite"] * 3 + [""]


@given(hn.arrays(np.float32, (4, 3), elements=st.floats(-4, 4, width=32)), st.integers(0, 3))
def test_an_extreme_row_changes_no_bit_of_the_others(rows, place):
    """Embeddings of healthy data, and so fingerprints, stay as they were."""
    rows[:, 0] = 1
    expected = rows / np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    others = np.arange(4) != place
    rows[place] = [1e-30, 0, 0]
    assert (normalise(rows)[others] == expected[others]).all()


# --- what archives store in 16 bits ---------------------------------------------------------------------------------


def test_more_clusters_than_16_bits_count_share_the_last_one():
    labels = single_clusters(Ragged.from_lists([list(range(40_000)), [1, 2]]))
    assert labels.dtype == np.int16
    assert labels[:5].tolist() == [0, 1, 2, 3, 4] and labels[-2:].tolist() == [0, 1]
    assert labels[LAST_CLUSTER - 1 : LAST_CLUSTER + 2].tolist() == [32766, 32767, 32767]
    assert (labels >= 0).all()


def test_more_neighbours_than_16_bits_count_are_refused():
    assert config.RetrievalConfig(neighbors=32_767).neighbors == 32_767
    with pytest.raises(CocuError, match=r"retrieval\.neighbors: 40000 must be at least 1 and at most 32,767"):
        config.RetrievalConfig(neighbors=40_000)


def test_an_archive_file_has_one_row_group_above_a_million_rows(tmp_path):
    rows = 1_100_000
    nothing = {name: np.zeros(0, np.float32) for name in ("score", "global", "local")}
    nothing |= {name: np.zeros(0, np.int16) for name in ("cluster", "support")}
    text = pa.array([""] * rows)
    batch = archive_batch(text, text, pa.array(["dog"]), np.zeros(rows + 1), np.zeros(0), **nothing)
    path = str(tmp_path / "a.parquet")
    with parquet_writer(path, SCHEMA, {}) as writer:
        write_whole(writer, [batch])
    assert pq.read_metadata(path).num_row_groups == 1
    assert pq.read_metadata(path).num_rows == rows


# --- messages --------------------------------------------------------------------------------------------

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        ALIASES + "name: *a11\nshards: a.tar\n",
        ALIASES + "encoder: *a11\n",
        "name: [" + ", ".join(["x"] * 50_000) + "]\n",
        "? " + "k" * 100_000 + "\n: 1\n",
        "name: a\nshards: a.tar\nencoder: {device: " + "d" * 100_000 + "}\n",
        "name: a\nshards: a.tar\non_error: " + "d" * 100_000 + "\n",
        "name: a\nshards: a.tar\nretrieval: {memory: " + "9" * 100_000 + "}\n",
        "name: '" + "n" * 100_000 + "/'\nshards: a.tar\n",
        "{" * 3000,
    ],
    ids=["alias", "section of aliases", "list", "key", "device", "choice", "size", "name", "nested"],
)
def test_messages_quote_little_of_a_huge_value(text, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(CocuError) as raised:
        config.load(str(path))
    assert len(str(raised.value)) < 1000 + len(str(path))


def test_a_sample_with_many_fields_is_rejected_in_a_few_words():
    fields = {f"field{number}": b"" for number in range(50_000)}
    assert len(check_sample("key", fields, ["jpg"], ["txt"]).reason) < 300
    assert "49,988 more" in check_sample("key", fields, ["jpg"], ["txt"]).reason


def test_yaml_of_aliases_is_what_it_seems():
    assert len(yaml.safe_load(ALIASES)["a11"]) == 10
