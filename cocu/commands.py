"""The commands of ``cocu``, in the order in which people need them."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """What a command runs: the function ``main`` of a module, which is imported only then."""

    module: str
    summary: str
    leading: tuple[str, ...] = ()  # arguments before those of the user


COMMANDS = {
    "pack": Command("curation.tools.pack.command", "pictures and captions in a folder, table or tar become shards"),
    "curate": Command("pipelines.curate", "shards become concept archives"),
    "show": Command("curation.tools.show", "print archives readably"),
    "search": Command("curation.tools.search", "print the images that are nearest to words or to a picture"),
    "browse": Command("curation.tools.browse.command", "look through archives in a browser"),
    "measure": Command("curation.tools.measure", "compare every expansion and ranking with the truth"),
    "verify": Command("curation.tools.verify", "check a finished run, and compute a sample of it again"),
    "report": Command("curation.tools.report.__main__", "write the page of a finished run"),
    "export": Command("curation.tools.export", "archives in the forms that other programs read"),
    "match": Command("curation.tools.match", "archives for another download of the same data"),
    "train": Command("training.cli", "train a model on images, captions and archives", ("fit",)),
    "eval": Command("evaluation.__main__", "zero-shot segmentation on benchmarks"),
    "segment": Command("evaluation.segment", "segment pictures of your own by words of your own"),
    "convert": Command("segmenters.convert", "checkpoints to and from transformers"),
    "experiments": Command("experiments.__main__", "train and compare all arms: does CoCu help?"),
    "demo": Command("pipelines.demo.__main__", "make the demo world"),
}
