"""The floor beneath all packages: it imports nothing of ours, and any package may import it.

errors.py          what users can fix: one root, one line each
files.py           local and remote paths, files that appear whole or not at all, JSON
configuration.py   typed dataclasses from YAML; unknown keys with the nearest known one
devices.py         which device and precision to compute with
lookahead.py       work done in threads a few items ahead of where it is used
embeddings.py      embeddings as they are stored: fp16 columns, unit length when read
ragged.py          lists of unequal lengths as two arrays
random_numbers.py  random numbers that are hashes
versions.py        versions of what can change a value
markup.py          data as HTML
terminal.py        errors, tables and progress on the terminal
"""
