"""``cocu pack SOURCE -o packed/{}.tar``: pictures as people have them, as tars that curation reads.

command.py  the command line
packing.py  packing from its beginning to its end
sources.py  which kind of source something is
folder.py   images in a folder, with captions beside them
tables.py   captions in tables and lists
rows.py     images inside Parquet files
tars.py     tars that were written in another way
entry.py    an image with its caption, wherever it comes from
keys.py     safe, unique keys
shards.py   what is written: whole or not at all, and resumed
writer.py   the tars themselves
"""

from curation.tools.pack.command import main

__all__ = ["main"]
