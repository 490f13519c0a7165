"""What a run is asked for and this machine, or this data, cannot do: found before the work begins, and by a dry run."""

from __future__ import annotations

import importlib.util

from curation import encoder
from curation.base import files
from curation.base.errors import CocuError
from curation.index.trial import try_form
from curation.run.indexes import search_device
from curation.run.run import Run, indexed_run


def check_settings(run: Run) -> None:
    """Raises CocuError for what a run would come to refuse: an encoder, device, tagger, index or output that cannot be."""
    config = run.config
    encoder.check(config.encoder)
    search_device(config.retrieval)
    tagger = config.vocabulary.tagger
    is_installed = importlib.util.find_spec(tagger) is not None if tagger.isidentifier() else files.exists(tagger)
    if config.vocabulary.built and not is_installed:
        raise CocuError(f"vocabulary.tagger: the spaCy pipeline {tagger} is not installed; pip install it")
    if config.retrieval.index != "auto":
        try_form(config.retrieval.index, config.retrieval.search)
    check_encoders(run)


def check_encoders(run: Run) -> Run:
    """The run whose images are indexed. Raises CocuError when another encoder embedded them."""
    source = indexed_run(run)
    if source is not run:
        ours, theirs = (encoder.identity(one.config.encoder) for one in (run, source))
        if ours != theirs:
            raise CocuError(
                f"retrieval.data: {source.folder} was embedded by another encoder ({theirs['model']}) than encoder.model "
                f"({ours['model']}); use the same encoder for both"
            )
    return source
