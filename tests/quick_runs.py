"""What makes hundreds of tiny runs quick without changing what they do: nothing waits for the disk, Beam looks once, and
what is collected is the garbage of tests.

Of a run of a second in one process, Beam takes half: it inspects the same functions ten thousand times and makes the
parsers of its options four hundred times. Programs that tests start are as slow as a user's.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def sync_nothing(patch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, files are lost with the power only, which no test cuts."""
    patch.setattr(os, "fsync", lambda descriptor: None)


@contextlib.contextmanager
def modules_unscanned() -> Iterator[None]:
    """Leave what is imported out of collections of garbage: with torch, transformers and Beam each takes half a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def inspect_once(patch: pytest.MonkeyPatch) -> None:
    """Beam's answers about the arguments of a function, and its views of options, which all share one dictionary."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.transforms import core

    look, view = core.get_function_args_defaults, PipelineOptions.view_as
    arguments: dict[tuple[Any, bool], tuple[list[str], list[Any]]] = {}
    views: dict[tuple[int, type], tuple[dict[str, Any], Any]] = {}

    def args_defaults(function: Callable[..., Any]) -> tuple[list[str], list[Any]]:
        plain = getattr(function, "__func__", function)
        key = plain, function is plain  # the first argument of a bound method is no argument
        if key not in arguments:
            arguments[key] = look(function)
        names, defaults = arguments[key]
        return list(names), list(defaults)

    def view_as(options: PipelineOptions, kind: type) -> Any:
        shared = options._all_options
        if (id(shared), kind) not in views:
            views[id(shared), kind] = shared, view(options, kind)  # the dictionary is held: its id stays its own
        return views[id(shared), kind][1]

    patch.setattr(core, "get_function_args_defaults", args_defaults)
    patch.setattr(PipelineOptions, "view_as", view_as)
