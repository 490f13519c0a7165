"""Archives in the forms that other programs read: ``cocu export OUT --format NAME``.

command.py    the command line
export.py     what is exported, shard by shard, and the table of formats
text.py       jsonl, and webdataset's sidecars
images.py     images copied out of their tars
openclip.py   csv, as open_clip's trainer reads it
fiftyone.py   images and labels, as FiftyOne imports them
lance.py      one table for Lance and LanceDB
archives.py   a folder of archives like a run's, with those that were chosen
card.py       its data card, for Hugging Face
"""

from curation.tools.export.command import build_parser, main
from curation.tools.export.export import FORMATS, Export

__all__ = ["FORMATS", "Export", "build_parser", "main"]
