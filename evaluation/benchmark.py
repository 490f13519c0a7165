"""What a benchmark is: a typed description in YAML, packaged in ``evaluation/configs/`` or written by a user."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

from curation.base.configuration import build, did_you_mean, errors_naming, read_yaml, require, require_one_of
from curation.base.errors import CocuError, one_line
from evaluation.labels import ENCODINGS


class AbsentError(CocuError):
    """The files of a benchmark are not there. The message names the folder that was looked for."""


@dataclass(frozen=True)
class Layout:
    """Where the files are. Patterns are relative to ``root``; ``{id}`` names an image, other fields its folders."""

    root: str
    images: str
    masks: str
    split: str | None = None  # file with one id a line; without it, every image that the pattern matches
    raw_masks: str | None = None  # original masks, read in ``raw_encoding`` where a file of ``masks`` is absent

    def __post_init__(self) -> None:
        """Raises CocuError for patterns without {id}, and for fields that are no names."""
        for key in ("images", "masks", "raw_masks"):
            pattern = getattr(self, key)
            if pattern is not None:
                require("{id}" in pattern, f"layout.{key}: {pattern} has no {{id}}")
                problem = pattern_problem(pattern)
                require(problem is None, f"layout.{key}: {pattern}: {problem}; write fields as {{id}} or {{folder}}")


def pattern_problem(pattern: str) -> str | None:
    """What is wrong with the fields of a pattern; None where nothing is.

    >>> pattern_problem("{folder}/{id}.png"), pattern_problem("{id}_{}.png"), pattern_problem("{id}_{.png")
    (None, '{} is no field', "expected '}' before end of string")
    """
    try:
        fields = [part[1:] for part in Formatter().parse(pattern) if part[1] is not None]
    except ValueError as error:
        return str(error)
    others = (name for name, form, conversion in fields if form or conversion or not str(name).isidentifier())
    return next((f"{{{name}}} is no field" for name in others), None)


@dataclass(frozen=True)
class Benchmark:
    """A data set with its classes, its label encoding and the sizes at which it is evaluated."""

    name: str
    layout: Layout
    background: bool
    resize_short: int
    crop: int
    stride: int
    classes: tuple[str, ...]  # "background" first where the benchmark has it
    bg_threshold: float | None = None
    resize_long_max: int = 2048
    ignore_index: int | None = 255
    encoding: str = "indices"  # one of labels.ENCODINGS
    raw_encoding: str | None = None
    shrink_above: int | None = None  # images of more pixels are shrunk first ...
    shrink_long: int | None = None  # ... to this many on the long side
    title: str = ""
    labels: str = ""  # the encoding in words, for error messages
    obtain: str = ""  # how to get the files, for the message that they are absent
    num_classes: int | None = None  # must agree with ``classes`` where it is given
    val_images: int | None = None  # images expected
    published: Mapping[str, float] = field(default_factory=dict)  # model: mIoU
    order: int | None = None  # of a packaged benchmark in lists: its column in the papers' tables

    def __post_init__(self) -> None:
        """Check every value. Raises CocuError naming the key."""
        require(
            bool(self.name.strip()) and self.name not in (".", "..") and not {"/", "\\"} & {*self.name},
            f"name: {self.name!r} is no name of a folder, which predictions and pictures go into; leave slashes out",
        )
        self._check_classes()
        self._check_sizes()
        self._check_labels()

    def _check_classes(self) -> None:
        count = len(self.classes)
        require(count > 0, "classes: at least one is needed")
        require(len(set(self.classes)) == count, f"classes: {repeated(self.classes)!r} occurs twice")
        require(
            self.num_classes in (None, count),
            f"num_classes: {self.num_classes}, but {count} classes are named; correct one of them",
        )

        if not self.background:
            require(self.bg_threshold is None, "bg_threshold: has no meaning with background: false; remove it")
            return
        require(self.classes[0] == "background", f"classes: the first is {self.classes[0]!r}, expected 'background'")
        require(count > 1, "classes: at least one besides background is needed")
        require(self.bg_threshold is not None, "bg_threshold: missing; background: true needs it")

    def _check_sizes(self) -> None:
        for key in ("resize_short", "resize_long_max", "crop", "stride", "shrink_above", "shrink_long"):
            value = getattr(self, key)
            require(value is None or value > 0, f"{key}: {value} must be at least 1")
        require(
            self.stride <= self.crop, f"stride: {self.stride} is larger than crop {self.crop}: pixels would be left out"
        )
        require(
            (self.shrink_above is None) == (self.shrink_long is None),
            "shrink_above: goes with shrink_long; give both or neither",
        )

    def _check_labels(self) -> None:
        count, ignored = len(self.classes), self.ignore_index
        require(
            ignored is None or not 0 <= ignored < count,
            f"ignore_index: {ignored} is the index of class {ignored} of {count}; use another",
        )
        require_one_of("encoding", self.encoding, ENCODINGS)
        if self.raw_encoding is not None:
            require_one_of("raw_encoding", self.raw_encoding, ENCODINGS)
        require(
            (self.raw_encoding is None) == (self.layout.raw_masks is None),
            "raw_encoding: goes with layout.raw_masks; give both or neither",
        )

    @property
    def words(self) -> tuple[str, ...]:
        """The classes that are embedded as text: all but the background."""
        return self.classes[1:] if self.background else self.classes


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time; None when all differ.

    >>> repeated(["sky", "dog", "tree", "dog", "sky"])
    'dog'
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


# --- reading ------------------------------------------------------------------------------------------------------------


def packaged() -> dict[str, Path]:
    """Name and file of the benchmarks that ship with the package: the files of ``evaluation/configs/``, by ``order``."""
    folder = Path(str(resources.files("evaluation"))) / "configs"
    order = {path: int(read_yaml(path)["order"]) for path in folder.glob("*.yaml")}
    return {path.stem: path for path in sorted(order, key=lambda path: order[path])}


def read_benchmark(name: str, data_root: str) -> Benchmark:
    """The benchmark that ``name`` means: a packaged one, below ``data_root``, or a YAML file, beside ``root``.

    Raises CocuError for an unknown name or a bad file, AbsentError when its classes are in a file that is not there.

    >>> read_benchmark("voc", data_root="data").classes[:3]
    ('background', 'aeroplane', 'bicycle')
    """
    paths = packaged()
    if name in paths:
        return _read(paths[name], data_root)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return _read(Path(name), os.path.dirname(os.path.abspath(name)))
    raise CocuError(
        f"benchmarks: {name!r} is not packaged{did_you_mean(name, paths)}; there are {', '.join(paths)}, "
        "or give a YAML file"
    )


def _read(path: Path, folder: str) -> Benchmark:
    """Read a YAML (or JSON) file; a relative ``layout.root``, or a file of ``classes``, is relative to ``folder``."""
    values = {"name": path.stem, **read_yaml(path)}
    with errors_naming(str(path)):
        require(isinstance(values.get("layout"), dict), "layout: missing; give root, images and masks")
        layout = build(Layout, {"root": ".", **values["layout"]}, "layout.")
        root = os.path.normpath(os.path.join(folder, os.path.expandvars(os.path.expanduser(layout.root))))
        values["layout"] = dataclasses.replace(layout, root=root)
        values["classes"] = _class_names(values.get("classes"), root, folder)
        return build(Benchmark, values)


def _class_names(value: Any, root: str, folder: str) -> tuple[str, ...]:
    """The classes: a list, the name of a text file relative to ``folder``, or by default ``root``/classes.txt."""
    if isinstance(value, list):
        others = [name for name in value if not isinstance(name, str)]
        require(not others, f"classes: {others[:1]} is not text; put it in quotes")
        return tuple(value)

    require(value is None or isinstance(value, str), f"classes: expected a list or a file name, found {value!r}")
    if not value and not os.path.isdir(root):
        raise AbsentError(f"no folder {root}")
    path = os.path.join(folder, value) if value else os.path.join(root, "classes.txt")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()  # without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = one_line(error)
        raise CocuError(f"classes: {path} cannot be read ({reason}); list the names, or write one a line") from None
    return tuple(line.strip() for line in lines if line.strip())
