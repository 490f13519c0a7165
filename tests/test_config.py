"""Configurations that are read, and those that are refused."""

import dataclasses
import os
from functools import partial

import pytest
import yaml
from config_files import SMALL, refused, write_config

from curation import config
from curation.base.errors import CocuError
from curation.config import ArchiveConfig, CurationConfig, RetrievalConfig, VocabularyConfig


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file in a folder of its own and returns its path."""
    return partial(write_config, tmp_path)


# --- good files --------------------------------------------------------------------------------------------------------


def test_file_of_the_design_is_read(file):
    path = file(
        """
        name: cc12m
        shards: /data/cc12m/{00000..01242}.tar
        image: jpg;png
        caption: txt
        encoder: {model: ViT-B-16, pretrained: openai, precision: auto, batch_size: 256}
        vocabulary: {source: build, min_count: 100, visualness: 0.3}
        retrieval: {neighbors: 8, index: auto, data: null}
        archive: {expansion: vision, ranking: true, clusters: true}
        output: artifacts/cc12m
        """
    )
    expected = CurationConfig(
        name="cc12m",
        shards="/data/cc12m/{00000..01242}.tar",
        image="jpg;png",
        caption="txt",
        encoder=config.EncoderConfig(pretrained="openai"),
        vocabulary=VocabularyConfig(min_count=100, visualness=0.3),
        output="artifacts/cc12m",
    )
    assert config.load(path) == expected


def test_defaults_are_those_of_the_method(file):
    found = config.load(file(SMALL))
    assert (found.retrieval.neighbors, found.retrieval.include_anchor) == (8, True)
    assert (found.archive.expansion, found.archive.ranking_name, found.archive.anchor_twice) == (
        "vision",
        "cocu",
        False,
    )
    assert found.vocabulary.prompts == ["a photo of a {c}."]
    assert (found.vocabulary.smallest_count, found.vocabulary.smallest_visualness) == (100, 0.3)
    assert found.output_folder == os.path.join("artifacts", "pets")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (100, 0.3)),
        ({"min_count": 0, "visualness": 0.0}, (0, 0.0)),
        ({"source": "c.txt"}, (0, None)),
        ({"source": "c.txt", "min_count": 3, "visualness": -0.5}, (3, -0.5)),
    ],
)
def test_limits_of_a_vocabulary_depend_on_its_source(settings, expected):
    found = VocabularyConfig(**settings)
    assert (found.smallest_count, found.smallest_visualness) == expected


@pytest.mark.parametrize(
    ("ranking", "name"), [(True, "cocu"), (False, "none"), *[(name, name) for name in config.RANKINGS]]
)
def test_ranking_is_a_name_or_true_or_false(ranking, name):
    assert ArchiveConfig(ranking=ranking).ranking_name == name


def test_whole_numbers_are_accepted_where_fractions_are():
    found = config.from_mapping({"name": "a", "shards": "a.tar", "vocabulary": {"visualness": 1}})
    assert type(found.vocabulary.visualness) is float


def test_defaults_that_are_lists_are_not_shared():
    VocabularyConfig().prompts.append("changed")
    assert VocabularyConfig().prompts == ["a photo of a {c}."]


# --- refused: keys and types -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("shard: a.tar", "shard", "shards"),
        ("encoder: {batchsize: 3}", "encoder.batchsize", "batch_size"),
        ("retrieval: {neighbours: 3}", "retrieval.neighbours", "neighbors"),
        ("archive: {Clusters: true}", "archive.Clusters", "clusters"),
        ("vocabularly: {}", "vocabularly", "vocabulary"),
    ],
)
def test_unknown_key_is_refused_with_file_key_and_nearest_key(text, key, nearest, file):
    path = file(f"name: pets\n{text}\n")
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert f"unknown key {key} " in message
    assert repr(nearest) in message


def test_unknown_key_that_resembles_nothing_is_refused_without_a_guess(file):
    message = refused(file(SMALL + "zzzzzz: 1\n"))
    assert "unknown key zzzzzz" in message
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("encoder: {batch_size: true}", "encoder.batch_size"),
        ("encoder: {batch_size: '256'}", "encoder.batch_size"),
        ("encoder: {batch_size: 25.6}", "encoder.batch_size"),
        ("encoder: {batch_size: null}", "encoder.batch_size"),
        ("encoder: {model: 3}", "encoder.model"),
        ("encoder: {model: null}", "encoder.model"),
        ("encoder: {device: [cpu]}", "encoder.device"),
        ("vocabulary: {visualness: high}", "vocabulary.visualness"),
        ("vocabulary: {visualness: true}", "vocabulary.visualness"),
        ("vocabulary: {min_count: 1.0}", "vocabulary.min_count"),
        ("vocabulary: {prompts: 'a {c}'}", "vocabulary.prompts"),
        ("vocabulary: {prompts: [1]}", "vocabulary.prompts"),
        ("vocabulary: {source: null}", "vocabulary.source"),
        ("retrieval: {include_anchor: 1}", "retrieval.include_anchor"),
        ("retrieval: {include_anchor: 'yes'}", "retrieval.include_anchor"),
        ("retrieval: {neighbors: {}}", "retrieval.neighbors"),
        ("retrieval: {data: 3}", "retrieval.data"),
        ("archive: {seed: '0'}", "archive.seed"),
        ("archive: {ranking: 3}", "archive.ranking"),
        ("archive: {ranking: null}", "archive.ranking"),
        ("shards: 3", "shards"),
        ("shards: [a.tar, 3]", "shards"),
        ("shards: {a: b}", "shards"),
        ("image: [jpg]", "image"),
        ("output: 3", "output"),
        ("name: 2024", "name"),
        ("encoder: ViT-B-16", "encoder"),
        ("encoder:", "encoder"),
        ("archive: [vision]", "archive"),
    ],
)
def test_wrong_type_is_refused_with_file_and_key(text, key, file):
    path = file(yaml.safe_dump({**yaml.safe_load(SMALL), **yaml.safe_load(text)}))
    message = refused(path)
    assert message.startswith(f"{path}: {key}: expected ")


# --- refused: values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "smallest"),
    [
        ("encoder.batch_size", 1),
        ("vocabulary.min_count", 0),
        ("vocabulary.sample", 2),
        ("retrieval.neighbors", 1),
        ("retrieval.train_sample", 1),
    ],
)
def test_every_number_has_a_smallest_value(key, smallest, file):
    section, name = key.split(".")
    assert getattr(getattr(config.load(file(SMALL), {key: str(smallest)}), section), name) == smallest
    for value in (smallest - 1, -1000):
        assert key in refused(file(SMALL), {key: str(value)})


def test_visualness_that_is_not_a_number_is_refused(file):
    assert "vocabulary.visualness" in refused(file(SMALL), {"vocabulary.visualness": ".nan"})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("encoder.precision", "fp8", ["'fp8'", "auto, fp32, bf16, fp16"]),
        ("encoder.device", "gpu", ["'gpu'", "cuda"]),
        ("encoder.device", "'cuda:'", ["'cuda:'"]),
        ("retrieval.device", "gpu", ["'gpu'", "cuda"]),
        ("retrieval.memory", "16 apples", ["'16 apples'", "16G"]),
        ("retrieval.recall", "0", ["0.0", "between 0 and 1"]),
        ("retrieval.recall", "1.01", ["1.01", "between 0 and 1"]),
        ("encoder.device", "cuda:-1", ["'cuda:-1'"]),
        ("archive.expansion", "vison", ["did you mean 'vision'"]),
        ("archive.ranking", "similarty", ["did you mean 'similarity'"]),
        ("vocabulary.prompts", "[]", ["sentence"]),
        ("vocabulary.prompts", "['a {c}', 'a photo']", ["'a photo'", "{c}"]),
        ("name", "''", ["missing"]),
        ("name", "a/b", ["'a/b'"]),
        ("name", "'..'", ["'..'"]),
        ("name", "'a b'", ["'a b'"]),
        ("image", "''", ["field"]),
        ("caption", "';'", ["field"]),
    ],
)
def test_bad_value_is_refused_with_file_and_key(key, value, words, file):
    path = file(SMALL)
    message = refused(path, {key: value})
    assert message.startswith(f"{path}: {key}: ")
    assert all(word in message for word in words)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_accepted_by_name(device):
    assert config.EncoderConfig(device=device).device == device


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"name": "a"}, ["shards"]),
        ({"name": "a", "shards": []}, ["shards"]),
        ({"name": "a", "shards": ""}, ["shards"]),
        ({"shards": "a.tar"}, ["name"]),
        ({"name": "a", "shards": "a.tar", "embeddings": "folder"}, ["shards", "embeddings"]),
        (
            {"name": "a", "shards": "a.tar", "retrieval": {"data": "d", "index": "Flat"}},
            ["retrieval.index", "retrieval.data"],
        ),
        (
            {"name": "a", "shards": "a.tar", "retrieval": {"data": "d"}, "archive": {"expansion": "text"}},
            ["retrieval.data", "archive.expansion"],
        ),
    ],
)
def test_contradictions_and_gaps_are_refused_naming_the_keys(values, keys):
    with pytest.raises(CocuError, match=r"^here: ") as raised:
        config.from_mapping(values, "here")
    assert all(key in str(raised.value) for key in keys)


def test_from_mapping_accepts_embeddings_in_place_of_shards_and_nested_mappings():
    found = config.from_mapping({"name": "a", "embeddings": "folder", "retrieval": {"neighbors": 3}})
    assert found == CurationConfig(name="a", embeddings="folder", retrieval=RetrievalConfig(neighbors=3))


# --- files that cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["name: [", "name: a: b", "\tname: a", "{", "- a\n- b", "", "just text", b"name: caf\xe9", b"\x00\x01"]
)
def test_unreadable_file_is_refused_in_one_line_naming_it(text, file):
    path = file(text)
    assert refused(path).startswith(f"{path}: ")


@pytest.mark.parametrize("path", ["missing.yaml", "."])
def test_missing_file_and_folder_are_refused_naming_them(path, tmp_path):
    assert refused(str(tmp_path / path)).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [made]",
        "!!python/object/new:os.mkdir [made]",
        "!!python/name:os.mkdir",
        "!!python/tuple [a]",
    ],
)
def test_python_objects_in_yaml_are_refused_and_never_made(value, file, elsewhere):
    assert "cannot be read as YAML" in refused(file(f"name: pets\nshards: {value}\n"))
    assert not (elsewhere / "here" / "made").exists()


# --- options -----------------------------------------------------------------------------------------------------------


def leaves(value, prefix=""):
    for item in dataclasses.fields(value):
        inner = getattr(value, item.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, inner


def test_options_are_every_dotted_key_once_with_default_and_help():
    options = list(config.options())
    expected = dict(leaves(CurationConfig(name="a", shards="b")))
    assert [key for key, _, _ in options] == list(expected)
    defaults = {key: default for key, default, _ in options}
    assert defaults == {**expected, "name": "", "shards": ""}
    assert all(text and "\n" not in text for _, _, text in options)


def test_every_option_can_be_given_its_default_as_an_override(file):
    overrides = {key: yaml.safe_dump(default) for key, default, _ in config.options() if key not in ("name", "shards")}
    path = file(SMALL)
    assert config.load(path, overrides) == config.load(path)
