"""What a benchmark is: a typed description, nine of them packaged, any other read from a user's YAML file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from curation.base.configuration import build, did_you_mean, errors_naming, read_yaml, require
from curation.base.errors import CocuError
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
        """Raises CocuError for patterns without {id}."""
        for key in ("images", "masks", "raw_masks"):
            pattern = getattr(self, key)
            require(pattern is None or "{id}" in pattern, f"layout.{key}: {pattern} has no {{id}}")


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
    obtain: str = ""  # how to come by the files, for the message that they are absent
    num_classes: int | None = None  # must agree with ``classes`` where it is given
    val_images: int | None = None  # images expected
    published: Mapping[str, float] = field(default_factory=dict)  # model: mIoU

    def __post_init__(self) -> None:
        """Check every value. Raises CocuError naming the key."""
        count = len(self.classes)
        require(count > 0, "classes: at least one is needed")
        require(len(set(self.classes)) == count, f"classes: {repeated(self.classes)!r} occurs twice")
        require(
            self.num_classes in (None, count),
            f"num_classes: {self.num_classes}, but {count} classes are named; mend one",
        )
        if self.background:
            require(
                self.classes[0] == "background", f"classes: the first is {self.classes[0]!r}, expected 'background'"
            )
            require(count > 1, "classes: at least one besides background is needed")
            require(self.bg_threshold is not None, "bg_threshold: missing; background: true needs it")
        else:
            require(self.bg_threshold is None, "bg_threshold: has no meaning with background: false; remove it")
        for key in ("resize_short", "resize_long_max", "crop", "stride"):
            require(getattr(self, key) > 0, f"{key}: {getattr(self, key)} must be at least 1")
        require(
            self.stride <= self.crop, f"stride: {self.stride} is larger than crop {self.crop}: pixels would be left out"
        )
        require(
            self.ignore_index is None or not 0 <= self.ignore_index < count,
            f"ignore_index: {self.ignore_index} is the index of class {self.ignore_index} of {count}; use another",
        )
        for key in ("encoding", "raw_encoding"):
            value = getattr(self, key)
            known = ", ".join(ENCODINGS)
            require(
                value is None or value in ENCODINGS,
                f"{key}: {value!r} is not one of {known}{did_you_mean(value, ENCODINGS)}",
            )
        require(
            (self.raw_encoding is None) == (self.layout.raw_masks is None),
            "raw_encoding: goes with layout.raw_masks; give both or neither",
        )
        require(
            (self.shrink_above is None) == (self.shrink_long is None),
            "shrink_above: goes with shrink_long; give both or neither",
        )

    @property
    def words(self) -> tuple[str, ...]:
        """The classes that are embedded as text: all but the background."""
        return self.classes[1:] if self.background else self.classes


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def packaged() -> dict[str, Path]:
    """Name and file of the benchmarks that ship with the package: in the order of the papers' tables, the demo last."""
    folder = Path(str(resources.files("evaluation"))) / "configs"
    order = ["voc", "context", "coco_object", "imagenet_s_50", "imagenet_s_300", "coco_stuff", "cityscapes", "ade20k"]
    order.append("demo")
    return {name: folder / f"{name}.yaml" for name in order}


def read_benchmark(name: str, data_root: str) -> Benchmark:
    """The benchmark that ``name`` means: a packaged one, below ``data_root``, or a YAML file, beside ``root``.

    Raises CocuError for an unknown name or a bad file, AbsentError when its classes are in a file that is not there.
    """
    known = packaged()
    if name in known:
        return load(known[name], data_root)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return load(Path(name), os.path.dirname(os.path.abspath(name)))
    raise CocuError(
        f"benchmarks: {name!r} is not packaged{did_you_mean(name, known)}; there are {', '.join(known)}, "
        "or give a YAML file"
    )


def load(path: Path, folder: str) -> Benchmark:
    """Read a YAML (or JSON) file; a relative ``layout.root``, or a file of ``classes``, is relative to ``folder``."""
    values = {"name": path.stem, **read_yaml(path)}
    with errors_naming(str(path)):
        require(isinstance(values.get("layout"), dict), "layout: missing; give root, images and masks")
        layout = build(Layout, {"root": ".", **values["layout"]}, "layout.")
        root = os.path.normpath(os.path.join(folder, os.path.expandvars(os.path.expanduser(layout.root))))
        values["layout"] = dataclasses.replace(layout, root=root)
        values["classes"] = class_names(values.get("classes"), root, folder)
        return build(Benchmark, values)


def class_names(given: Any, root: str, folder: str) -> tuple[str, ...]:
    """The classes as given: a list, the name of a text file relative to ``folder``, or by default ``root``/classes.txt."""
    if isinstance(given, list):
        require(
            all(isinstance(name, str) for name in given),
            f"classes: {[n for n in given if not isinstance(n, str)][:1]} is no text; put it in quotes",
        )
        return tuple(given)
    require(given is None or isinstance(given, str), f"classes: expected a list or a file name, found {given!r}")
    path = os.path.join(folder, given) if given else os.path.join(root, "classes.txt")
    if not given and not os.path.isdir(root):
        raise AbsentError(f"no folder {root}")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CocuError(f"classes: {path} cannot be read ({error}); list the names, or write one a line") from None
    return tuple(line.strip() for line in lines if line.strip())
