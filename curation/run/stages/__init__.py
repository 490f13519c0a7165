"""The stages of curation: functions from files to files, for any engine to run.

A stage either works on one shard (``work(run, shard)``, in parallel over shards) or runs once (``work(run)``).
Each finds out by fingerprint whether its output is still good, and keeps it then. The arithmetic is in the modules above
this package; here is what is read, what is written, and what it depends on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from threadpoolctl import threadpool_limits

from curation.base.errors import CocuError
from curation.run.manifest import write_manifest
from curation.run.run import Run
from curation.run.stages.archives import archive
from curation.run.stages.embeddings import captions, concepts, embed
from curation.run.stages.index import CAPTIONS, IMAGES, Kind, encode, merge, train, tune_search
from curation.run.stages.mentions import mentions
from curation.run.stages.vocabulary import candidates, choose_vocabulary, nouns, visualness
from curation.run.stages.work import Forecast
from curation.samples import Shard


class Stage(NamedTuple):
    """One step of a run. ``needs``: the stages whose run it reads."""

    name: str
    work: Callable[..., None]
    per_shard: bool
    needs: tuple[str, ...]


def plan(run: Run) -> list[Stage]:
    """The stages of a run, in order. Each needs the ones before it to be finished for all shards."""
    config = run.config
    texts = config.archive.expansion == "text"
    searched = (CAPTIONS if texts else IMAGES).stage("tune")
    steps = [
        (True, Stage("embed", embed, True, ())),
        (config.vocabulary.built, Stage("nouns", nouns, True, ("embed",))),
        (True, Stage("candidates", candidates, False, ("nouns",))),
        (True, Stage("visualness", visualness, True, ("embed", "candidates"))),
        (True, Stage("vocabulary", choose_vocabulary, False, ("visualness",))),
        (True, Stage("concepts", concepts, True, ("embed", "vocabulary"))),
        *((not config.retrieval.data, stage) for stage in index_stages(IMAGES)),
        (texts, Stage("captions", captions, True, ("embed",))),
        *((texts, stage) for stage in index_stages(CAPTIONS)),
        (True, Stage("mentions", mentions, False, ("embed", "vocabulary", "concepts"))),
        (True, Stage("archive", archive, True, ("embed", "concepts", "vocabulary", "mentions", searched))),
        (True, Stage("manifest", write_manifest, False, ("archive",))),
    ]
    return [stage for needed, stage in steps if needed]


def index_stages(kind: Kind) -> list[Stage]:
    """The steps that build one kind of index."""
    trained, filled, merged = (kind.stage(verb) for verb in ("train", "fill", ""))
    return [
        Stage(trained, partial(train, kind=kind), False, (kind.embedded_by,)),
        Stage(filled, partial(encode, kind=kind), True, (kind.embedded_by, trained)),
        Stage(merged, partial(merge, kind=kind), False, (trained, filled)),
        Stage(kind.stage("tune"), partial(tune_search, kind=kind), False, ("embed", merged)),
    ]


def run_stage(stage: Stage, run: Run, shard: Shard | None = None) -> None:
    """Run one stage, on one shard where it works on shards. Any error becomes one line that names the shard.

    A shard is worked on in one thread: the engine runs many shards at once, and results must not depend on how many.
    What runs once has the machine to itself; FAISS' k-means, its long part, gives the same bits with any number of threads.
    """
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1 if stage.per_shard else os.cpu_count() or 1)
    try:
        # numpy's BLAS has threads of its own
        with threadpool_limits(1) if stage.per_shard else contextlib.nullcontext():
            stage.work(run, shard) if stage.per_shard else stage.work(run)
    except (CocuError, Forecast):
        raise
    except Exception as error:
        where = shard.path if shard else run.folder
        reason = " ".join(str(error).split())[:500]
        raise CocuError(f"{where}: stage {stage.name} failed: {type(error).__name__}: {reason}") from error
