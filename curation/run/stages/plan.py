"""The stages of a run, in order."""

from __future__ import annotations

from curation.expansion import EXPANSIONS
from curation.run.indexes import INDEXES
from curation.run.run import Run
from curation.run.stages.archives import ARCHIVE
from curation.run.stages.duplicates import DUPLICATES
from curation.run.stages.embeddings import CAPTIONS, CONCEPTS, EMBED
from curation.run.stages.graph import GRAPH
from curation.run.stages.index import index_stages
from curation.run.stages.mentions import MENTIONS
from curation.run.stages.nouns import NOUNS
from curation.run.stages.stage import Stage
from curation.run.stages.vocabulary import CANDIDATES, VISUALNESS, VOCABULARY


def plan(run: Run) -> list[Stage]:
    """The stages of a run, in order. Each needs the ones before it to be finished for all shards.

    After the last one the holder of the output folder calls :func:`curation.run.manifest.finish`.
    """
    config = run.config
    retrieves = EXPANSIONS[config.archive.expansion].retrieves
    own_images = [] if config.retrieval.data else index_stages(INDEXES["image"])
    own_captions = [CAPTIONS, *index_stages(INDEXES["text"])] if retrieves == "text" else []
    return [
        EMBED,
        *([NOUNS] if config.vocabulary.built else []),
        CANDIDATES,
        VISUALNESS,
        VOCABULARY,
        CONCEPTS,
        *own_images,
        *own_captions,
        MENTIONS,
        *GRAPH,
        DUPLICATES,
        ARCHIVE,
    ]
