"""``cocu``: one command for everything that people do with CoCu.

commands.py   the table of commands
__main__.py   finds the command and runs it
completion.py completion in bash and zsh
"""
