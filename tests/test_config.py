"""Configuration: what is accepted, what is refused and with which words; the pure choices of the encoder."""

import dataclasses
import os

import numpy as np
import pytest
import yaml

from curation import config
from curation.config import ArchiveConfig, CurationConfig, RetrievalConfig, VocabularyConfig
from curation.encoder import choose_device, choose_precision, encode_concepts
from curation.errors import CurationError

SMALL = "name: pets\nshards: a.tar\n"


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file in a folder of its own and returns its path."""

    def write(text):
        (tmp_path / "conf").mkdir(exist_ok=True)
        path = tmp_path / "conf" / "pets.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def refused(path, overrides=None):
    """The one line with which a file is refused."""
    with pytest.raises(CurationError) as raised:
        config.load(path, overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


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
    with pytest.raises(CurationError, match=r"^here: ") as raised:
        config.from_mapping(values, "here")
    assert all(key in str(raised.value) for key in keys)


def test_from_mapping_accepts_embeddings_in_place_of_shards_and_nested_mappings():
    found = config.from_mapping({"name": "a", "embeddings": "folder", "retrieval": {"neighbors": 3}})
    assert found == CurationConfig(name="a", embeddings="folder", retrieval=RetrievalConfig(neighbors=3))


# --- paths -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory that is not the folder of the file."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


PATHS = """
name: pets
shards: ["tars/{0..3}.tar", ../b.tar, /abs/c.tar, "s3://bucket/d.tar"]
encoder: {model: "local-dir:clip", pretrained: weights.pt}
vocabulary: {source: concepts.txt}
retrieval: {data: ../other}
output: out
"""


def test_paths_in_a_file_are_relative_to_the_file_except_the_output(file, elsewhere):
    path = file(PATHS)
    (elsewhere / "conf" / "weights.pt").write_bytes(b"")
    found = config.load(os.path.relpath(path))
    folder = str(elsewhere / "conf")
    assert found.shards == [f"{folder}/tars/{{0..3}}.tar", f"{elsewhere}/b.tar", "/abs/c.tar", "s3://bucket/d.tar"]
    assert found.encoder.model == f"local-dir:{folder}/clip"
    assert found.encoder.pretrained == f"{folder}/weights.pt"
    assert found.vocabulary.source == f"{folder}/concepts.txt"
    assert found.retrieval.data == f"{elsewhere}/other"
    assert found.output_folder == "out"


def test_names_that_are_no_paths_stay(file, elsewhere):
    path = file("name: pets\nembeddings: emb\nencoder: {model: ViT-B-16, pretrained: openai}\n")
    found = config.load(path)
    assert found.embeddings == f"{elsewhere}/conf/emb"
    assert (found.encoder.model, found.encoder.pretrained) == ("ViT-B-16", "openai")
    assert found.vocabulary.source == "build"
    assert config.load(path, {"encoder.model": "hf-hub:org/name"}).encoder.model == "hf-hub:org/name"


def test_overrides_win_and_their_paths_are_relative_to_the_working_directory(file, elsewhere):
    overrides = {
        "shards": "x/{0,1}.tar",
        "vocabulary.source": "../c.txt",
        "encoder.model": "local-dir:clip",
        "retrieval.neighbors": "3",
        "archive.ranking": "false",
        "vocabulary.prompts": "['a {c}', 'the {c}']",
        "retrieval.data": "null",
    }
    found = config.load(file(PATHS), overrides)
    assert found.shards == f"{elsewhere}/here/x/{{0,1}}.tar"
    assert found.vocabulary == VocabularyConfig(source=f"{elsewhere}/c.txt", prompts=["a {c}", "the {c}"])
    assert found.encoder.model == f"local-dir:{elsewhere}/here/clip"
    assert found.encoder.pretrained == "weights.pt"  # of the file, where there is none of that name
    assert (found.retrieval.neighbors, found.retrieval.data) == (3, None)
    assert found.archive.ranking_name == "none"
    assert found.name == "pets"


def test_overrides_are_checked_like_the_file(file):
    path = file(SMALL)
    assert "unknown key encoder.modl (did you mean 'model'?)" in refused(path, {"encoder.modl": "x"})
    assert "retrieval.neighbors: expected int" in refused(path, {"retrieval.neighbors": "many"})
    assert "shards" in refused(path, {"shards.first": "x"})


def test_override_that_is_not_yaml_is_refused_naming_the_key(file):
    assert "encoder.model" in refused(file(SMALL), {"encoder.model": "[a"})


def test_override_cannot_make_a_python_object(file, elsewhere):
    with pytest.raises((CurationError, yaml.YAMLError)):
        config.load(file(SMALL), {"name": "!!python/object/apply:os.mkdir [made]"})
    assert not (elsewhere / "here" / "made").exists()


def test_environment_variables_are_expanded_in_paths(file, elsewhere, monkeypatch):
    monkeypatch.setenv("COCU_DATA", "/mnt/data")
    found = config.load(file("name: pets\nshards: ['${COCU_DATA}/{0..1}.tar', 's3://${COCU_DATA}/a.tar']\n"))
    assert found.shards == ["/mnt/data/{0..1}.tar", "s3:///mnt/data/a.tar"]
    monkeypatch.setenv("COCU_DATA", "sub")
    assert config.load(file("name: pets\nshards: $COCU_DATA/a.tar\n")).shards == f"{elsewhere}/conf/sub/a.tar"


def test_environment_variable_that_is_not_set_is_refused_naming_it_and_the_file(file, monkeypatch):
    monkeypatch.delenv("COCU_UNSET", raising=False)
    path = file("name: pets\nshards: ${COCU_UNSET}/a.tar\n")
    message = refused(path)
    assert "COCU_UNSET is not set" in message
    assert path in message


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


# --- choices of the encoder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("auto", 8, "cuda"),
        ("cpu", 0, "cpu"),
        ("cpu", 8, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:7", 8, "cuda:7"),
    ],
)
def test_device_is_the_one_requested_or_the_best_there_is(requested, gpus, expected):
    assert choose_device(requested, gpus) == expected


@pytest.mark.parametrize(("requested", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:10", 2)])
def test_gpu_that_is_not_there_is_an_error_naming_it(requested, gpus):
    with pytest.raises(CurationError, match=rf"encoder\.device: {requested} .*{gpus} GPU"):
        choose_device(requested, gpus)


@pytest.mark.parametrize(
    ("requested", "device", "fast_bf16", "expected"),
    [
        ("auto", "cpu", False, "fp32"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("auto", "cuda:1", False, "fp16"),
        ("auto", "cuda:1", True, "bf16"),
        ("fp32", "cuda", True, "fp32"),
        ("fp32", "cpu", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("fp16", "cuda:0", True, "fp16"),
    ],
)
def test_precision_is_the_one_requested_or_the_fastest_that_is_safe(requested, device, fast_bf16, expected):
    assert choose_precision(requested, device, fast_bf16) == expected


@pytest.mark.parametrize("fast_bf16", [False, True])
def test_half_precision_on_a_cpu_is_an_error(fast_bf16):
    with pytest.raises(CurationError, match=r"encoder\.precision: fp16"):
        choose_precision("fp16", "cpu", fast_bf16)


def fake_encode(texts):
    """Unit rows that depend on the whole text."""
    rows = np.array([np.random.default_rng(list(text.encode())).standard_normal(6) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("prompts", [["a photo of a {c}."], ["{c}", "a {c} by a {c}", "the {c} {{c}}"]])
def test_concepts_are_embedded_as_the_normalised_mean_over_prompts(prompts):
    concepts = ["dog", "wine glass", "{0}"]
    expected = []
    for concept in concepts:
        mean = np.mean([fake_encode([prompt.replace("{c}", concept)])[0] for prompt in prompts], axis=0)
        expected.append(mean / np.linalg.norm(mean))
    found = encode_concepts(fake_encode, concepts, prompts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
