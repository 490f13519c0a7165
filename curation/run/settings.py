"""What a run is asked for and this machine, or this data, cannot do: found before the work begins, and by a dry run."""

from __future__ import annotations

import importlib.util

from curation import encoder
from curation.base import files
from curation.base.errors import CocuError
from curation.concepts import Matcher
from curation.index.trial import try_form
from curation.run.indexes import search_device
from curation.run.run import Run, indexed_run
from curation.run.texts import check_texts
from curation.wordlists import read_concepts


def check_settings(run: Run) -> None:
    """Raises CocuError for what a run would come to refuse: an encoder, device, tagger, index or output that cannot be."""
    config = run.config
    check_texts(run)
    _check_source(run)
    search_device(config.retrieval)
    tagger = config.vocabulary.tagger
    is_installed = importlib.util.find_spec(tagger) is not None if tagger.isidentifier() else files.exists(tagger)
    if config.vocabulary.built and not is_installed:
        raise CocuError(f"vocabulary.tagger: the spaCy pipeline {tagger} is not installed; pip install it")
    if config.retrieval.index != "auto":
        try_form(config.retrieval.index, config.retrieval.search)
    check_encoders(run)


def _check_source(run: Run) -> None:
    """Raises CocuError for a file of concepts that cannot be used: before anything is embedded, not after."""
    config = run.config.vocabulary
    if config.built:
        return
    for name in ("vocabulary.parquet", "candidates.parquet"):
        if files.is_same(config.source, run.path(name)):
            raise CocuError(
                f"vocabulary.source: this run writes {config.source} itself; copy it first, or give "
                f"{run.path('vocabulary.csv')}"
            )
    Matcher(read_concepts(config.source))


def check_encoders(run: Run) -> Run:
    """The run whose images are indexed. Raises CocuError when another encoder embedded them."""
    source = indexed_run(run)
    if source is not run:
        ours, theirs = (encoder.identity(one.config.encoder) for one in (run, source))
        if ours and theirs and ours != theirs:  # of imports without an encoder only the width can be compared
            raise CocuError(
                f"retrieval.data: {source.folder} was embedded by another encoder ({theirs['model']}) than encoder.model "
                f"({ours['model']}); use the same encoder for both"
            )
    return source
