"""Paths in configurations."""

import os
from functools import partial

import pytest
import yaml
from config_files import SMALL, refused, write_config

from curation import config
from curation.base.errors import CocuError
from curation.config import VocabularyConfig


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file in a folder of its own and returns its path."""
    return partial(write_config, tmp_path)


# --- paths -------------------------------------------------------------------------------------------------------------


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
    with pytest.raises((CocuError, yaml.YAMLError)):
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
