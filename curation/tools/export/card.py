"""The data card of a folder of archives: README.md as Hugging Face's hub reads it, with the schema in its front matter."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import yaml

SIZES = (
    *((1000, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B")),
)
FIELDS = {
    "key": "the name of the sample in its tar",
    "caption": "its caption",
    "captions": "each of its captions, with the fields that have it",
    "concepts": "the archive: concepts that may be visible, in descending score",
    "concept": "its name, a word or a few",
    "score": "what the list is sorted by",
    "global": "how well it fits the picture, compared with the rest of the archive",
    "local": "how well it fits the picture, compared with pictures whose captions mention it",
    "cluster": "concepts of one cluster mean nearly the same",
    "support": "how many captions of similar pictures mention it; 0 where it does not come from captions",
    "sources": "the fields whose captions mention it",
    "text": "its text",
    "duplicate_of": "the image that this one nearly equals, where such images count once",
    "shard": "the name of its tar",
}


def data_card(manifest: dict[str, Any], schema: pa.Schema, identities: bool) -> str:
    """README.md. manifest: of the folder; schema: of its archives; identities: whether it has those too."""
    config, counts = manifest["config"], manifest["counts"]
    before, after = (counts[kind] / counts["rows"] for kind in ("caption_concepts", "archive_concepts"))
    name = str(config.get("name", "archives"))
    return f"""---
{yaml.safe_dump(front_matter(name, counts["rows"], schema), sort_keys=False, allow_unicode=True)}---

# Concept archives of {name}

For each of {counts["rows"]:,} images, the concepts that may be visible in it, whether or not its caption names them. No
images are in here. Captions name {before:.1f} concepts of the vocabulary on average, archives hold {after:.1f}. Concepts
come from captions of similar images: they are candidates, not labels, and wrong where similar images are of something else.

Made by CoCu, an implementation of concept curation (Xing et al., *Rewrite Caption Semantics*, NeurIPS 2023,
[arXiv 2309.13505](https://arxiv.org/abs/2309.13505)).

| setting | value |
|---|---|
{_settings(config)}

## Columns of `archives/*.parquet`

| column | type | |
|---|---|---|
{_columns(schema)}

## Use

```python
import datasets

archives = datasets.load_dataset("parquet", data_files="archives/*.parquet", split="train")
```

`curation.archive.ConceptArchive.open(".")` reads the folder too, and filters and samples it. {_joining(identities)}

## Whose it is

Captions belong to whoever wrote them and are under the terms of the data set that they come from; say them here before you
publish.
"""


def front_matter(name: str, rows: int, schema: pa.Schema) -> dict[str, Any]:
    """What the hub reads: configurations, features, size."""
    size = next((text for limit, text in SIZES if rows < limit), "n>1T")
    return {
        "pretty_name": f"{name}: concept archives",
        "tags": ["concept-curation", "cocu", "image-text"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "archives/*.parquet"}],
                "default": True,
            }
        ],
        "dataset_info": {"config_name": "default", "features": [_feature(field) for field in schema]},
    }


def _feature(field: pa.Field) -> dict[str, Any]:
    """A feature as ``datasets`` writes it into front matter."""
    kind = field.type
    if pa.types.is_list(kind):
        value = kind.value_type
        inner = [_feature(child) for child in value] if pa.types.is_struct(value) else _name(value)
        return {"name": field.name, "list": inner}
    if pa.types.is_struct(kind):
        return {"name": field.name, "struct": [_feature(child) for child in kind]}
    return {"name": field.name, "dtype": _name(kind)}


def _name(kind: pa.DataType) -> str:
    """The name that ``datasets`` has for a type."""
    plain = "string" if pa.types.is_dictionary(kind) else str(kind)
    return {"float": "float32", "halffloat": "float16"}.get(plain, plain)


def _settings(config: dict[str, Any]) -> str:
    """The settings that decide what archives hold."""
    encoder, archive = config.get("encoder") or {}, config.get("archive") or {}
    model = str(encoder.get("model") or "given embeddings")
    model = model.rpartition("/")[2] if model.startswith("local-dir:") else model  # where it lies is nobody's business
    ranking: Any = archive.get("ranking", "")
    shown = {
        "encoder": f"{model} {encoder.get('pretrained') or ''}",
        "expansion": archive.get("expansion", ""),
        "ranking": {True: "cocu", False: "none"}.get(ranking, ranking),
        "neighbours": (config.get("retrieval") or {}).get("neighbors", ""),
    }
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in shown.items())


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "/").split())


def _columns(schema: pa.Schema) -> str:
    """A row for every column and every field within one."""
    lines = []
    for field in schema:
        lines.append(f"| `{field.name}` | {_kind(field.type)} | {FIELDS[field.name]} |")
        value = getattr(field.type, "value_type", field.type)
        for child in value if pa.types.is_struct(value) else ():
            lines.append(f"| `{field.name}[].{child.name}` | {_kind(child.type)} | {FIELDS[child.name]} |")
    return "\n".join(lines)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return "list of structs" if pa.types.is_struct(kind.value_type) else f"list of {_name(kind.value_type)}"
    return "struct" if pa.types.is_struct(kind) else _name(kind)


def _joining(identities: bool) -> str:
    if not identities:
        return "It joins with the tars that it was made from, by their names and keys."
    return "`cocu match . 'download/*.tar' --to FOLDER` joins it with another download of the images."
