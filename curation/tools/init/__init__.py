"""``cocu init data/*.tar``: a configuration with comments, written after a look at the data.

command.py    the command line
survey.py     what the tars hold: fields, captions, sizes
shards.py     the tars that are meant, and one pattern for them
settings.py   the configuration, as text
"""
