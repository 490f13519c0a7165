"""``cocu doctor [CONFIG]``: what this machine has, and whether a configuration can be curated on it.

command.py   the command line
finding.py   a line of the answer
machine.py   cores, memory, GPUs, disks
packages.py  versions, and the extras that are installed
needs.py     what a configuration asks of the machine
"""
