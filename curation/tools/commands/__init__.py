"""The command lines of the tools that look at a finished run.

They are light to import, for ``--help`` and completion: the work is imported when it is done.
"""
