"""The configuration, as text with comments that say why each value was chosen."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence

import yaml

from curation.base import files
from curation.base.configuration import errors_naming, parse_bytes, require
from curation.base.errors import CocuError
from curation.config import CurationConfig, load
from curation.index.choose import EXACT_UP_TO, choose_index
from curation.samples import list_shards
from curation.tools.init.shards import pattern_of
from curation.tools.init.survey import Survey

WIDTH = 512  # dimensions of an embedding of most CLIPs of size B
FEW = 1000  # samples, below which hardly a concept is mentioned often enough


def run_name(name: str) -> str:
    """A name with the characters that a run may have.

    >>> run_name("my trip (2)")
    'my-trip-2'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def configuration(survey: Survey, path: str, encoder: str) -> str:
    """The text of the file ``path``, in which local paths are relative to it."""
    name = run_name(os.path.basename(path).rpartition(".")[0])
    model, pretrained = encoder_of(encoder)
    weights = f", pretrained: {_yaml(pretrained, flow=True)}" if pretrained else ""
    captions = f"   # texts are also in {', '.join(survey.others)}" if survey.others else ""
    several = ""
    if survey.others:
        fields = ", ".join(_yaml(name, flow=True) for name in [survey.caption, *survey.others][:31])
        several = f"# captions: [{fields}]   # in place of caption: all of them count\n"
    return f"""\
# Written by cocu init. Every key, with its default: docs/data.md, or cocu curate --help.
# {_about(survey)}
name: {_yaml(name)}   # the archives will be in artifacts/{name}
shards: {_shards(survey, path)}
image: {_yaml(survey.images)}   # the first of these that a sample has
caption: {_yaml(survey.caption)}{captions}
{several}
# The CLIP that decides what looks alike. It is downloaded once. ViT-L-14 sees more and takes about five times as long,
# ViT-B-32 a quarter. A model that is here: local-dir:FOLDER.
encoder: {{model: {_yaml(model, flow=True)}{weights}}}

# Concepts are the nouns of the captions, where at least min_count captions mention them
# {_few(survey.rows)}.
vocabulary:
  source: build   # or a file with one concept a line
  min_count: {min_count(survey.rows)}

retrieval:
  neighbors: 8   # images whose captions are read for each image
  # {_index(survey.rows)}
  memory: {_memory(survey.rows)}

max_rejects: 0.5   # share of unusable samples that stops the run; {_rejects(survey)}
on_error: stop   # or skip: leave out a tar that cannot be read
"""


def encoder_of(text: str) -> tuple[str, str | None]:
    """Model and weights: of open_clip's, or of a folder or a hub, whose names have slashes themselves.

    >>> encoder_of("ViT-B-16/openai"), encoder_of("local-dir:a/clip")
    (('ViT-B-16', 'openai'), ('local-dir:a/clip', None))
    """
    if ":" in text:
        return text, None
    model, slash, pretrained = text.partition("/")
    require(
        bool(slash and pretrained), f"--encoder: {text} names no weights; write {text}/TAG, such as ViT-B-16/openai"
    )
    return model, pretrained


def min_count(rows: int) -> int:
    """Captions that must mention a concept: a thousandth of them, at least 3 and at most 100."""
    return max(3, min(100, rows // 1000))


def checked(text: str, path: str, paths: Sequence[str]) -> CurationConfig:
    """The configuration as ``cocu curate`` will read it. Raises CocuError where it would be refused, or mean other tars."""
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory() as temporary:
        written = os.path.join(temporary, os.path.basename(path))
        with open(written, "w", encoding="utf-8") as stream:
            stream.write(text)
        with errors_naming("cocu init"):
            config = load(written, folder=folder)
    meant = [path if files.is_remote(path) else os.path.abspath(path) for path in paths]
    if [shard.path for shard in list_shards(config.shards)] != meant:
        raise CocuError(
            f"{paths[0]}: these tars cannot be named in a configuration; rename those with braces or wildcards"
        )
    return config


def _shards(survey: Survey, path: str) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    relative = [name if files.is_remote(name) else os.path.relpath(name, folder) for name in survey.paths]
    pattern = pattern_of(relative)
    return _yaml(pattern) if isinstance(pattern, str) else "".join(f"\n  - {_yaml(name)}" for name in pattern)


def _about(survey: Survey) -> str:
    there = ", ".join(f"{name} ({count / survey.samples:.0%})" for name, count in survey.fields.most_common(8))
    return f"{survey.lines()[0]}; fields: {there}"


def _few(rows: int) -> str:
    if rows < FEW:
        return f"(about {rows:,} samples are few for that: a file of your own concepts will do better)"
    return f"(a thousandth of about {rows:,}, at least 3 and at most 100)"


def _index(rows: int) -> str:
    if rows <= EXACT_UP_TO[False]:
        return f"The search is exact up to {EXACT_UP_TO[False]:,} images."
    choice = choose_index(rows, WIDTH, parse_bytes(_memory(rows), "memory"), 0.95, graph=True)
    return f"For about {rows:,} images of {WIDTH} dimensions: {choice.factory}, {choice.bytes / 2**30:,.1f}G of memory."


def _memory(rows: int) -> str:
    """Twice what the coarsest index with a recall of .95 needs, and 16G unless that is more."""
    size = 16
    while True:
        try:
            choose_index(rows, WIDTH, size << 30, 0.95, graph=True)
            return f"{size}G"
        except CocuError:
            size *= 2


def _rejects(survey: Survey) -> str:
    return f"{survey.samples - survey.usable:,} of {survey.samples:,} that were looked at"


def _yaml(text: str, flow: bool = False) -> str:
    """A text as YAML writes it, in quotes where it would mean something else: ``flow`` within brackets and braces.

    >>> _yaml("jpg;png"), _yaml("2024"), _yaml("data/{0..3}.tar"), _yaml("data/{0..3}.tar", flow=True)
    ('jpg;png', '"2024"', 'data/{0..3}.tar', '"data/{0..3}.tar"')
    """
    try:
        is_plain = yaml.safe_load(f"[{text}]" if flow else f"x: {text}") == ([text] if flow else {"x": text})
    except yaml.YAMLError:
        is_plain = False
    return text if is_plain else json.dumps(text, ensure_ascii=False)
