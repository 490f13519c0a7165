"""Programs that run here in place of in a process of their own, where the process is not what is tested.

Every process that trains imports torch and Lightning first, which takes longer than a tiny training.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from subprocess import STDOUT, CompletedProcess
from typing import TextIO

import torch

INSTEAD = {"pipelines.curate": ("--runner", "inprocess")}  # of worker processes


class SameProcess:
    """Stands for ``subprocess`` where ``python -m MODULE ...`` is run and its output written to a file."""

    STDOUT = STDOUT

    @staticmethod
    def run(command: Sequence[str], stdout: TextIO, stderr: int, env: Mapping[str, str]) -> CompletedProcess[str]:
        """Run ``main`` of the module, on as many threads as the environment says; the command is written first."""
        _, option, module, *arguments = command
        assert (option, stderr) == ("-m", STDOUT)
        is_package = find_spec(module).submodule_search_locations is not None
        main = importlib.import_module(f"{module}.__main__" if is_package else module).main

        threads = torch.get_num_threads()
        torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
                print(*command, flush=True)
                code = main([*arguments, *INSTEAD.get(module, ())])
        except SystemExit as ended:
            code = ended.code
        finally:
            torch.set_num_threads(threads)
        return CompletedProcess(command, code)
