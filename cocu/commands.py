"""The commands of ``cocu``, in the order in which people need them."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """What a command runs: ``main`` of a module that also has ``build_parser``. It is imported only then."""

    module: str
    summary: str


COMMANDS = {
    "doctor": Command("pipelines.doctor.command", "what this machine has, and what a configuration needs"),
    "pack": Command("curation.tools.pack.command", "pictures and captions in a folder, table or tar become shards"),
    "init": Command("curation.tools.init.command", "write a configuration for tars, from a look at them"),
    "curate": Command("pipelines.curate", "shards become concept archives"),
    "show": Command("curation.tools.commands.show", "print archives readably"),
    "search": Command("curation.tools.search", "print the images that are nearest to words or to a picture"),
    "browse": Command("curation.tools.browse.command", "look through archives in a browser"),
    "measure": Command("curation.tools.commands.measure", "compare every expansion and ranking with the truth"),
    "verify": Command("curation.tools.commands.verify", "check a finished run, and compute a sample of it again"),
    "report": Command("curation.tools.commands.report", "write the page of a finished run"),
    "export": Command("curation.tools.export", "archives in the forms that other programs read"),
    "match": Command("curation.tools.match", "archives for another download of the same data"),
    "train": Command("training.command", "train a model on images, captions and archives"),
    "eval": Command("evaluation.__main__", "zero-shot segmentation on benchmarks"),
    "segment": Command("evaluation.segment_command", "segment pictures of your own by words of your own"),
    "convert": Command("segmenters.convert_command", "checkpoints to and from transformers"),
    "experiments": Command("experiments.__main__", "train and compare all arms: does CoCu help?"),
    "demo": Command("pipelines.demo.__main__", "make the demo world"),
}
