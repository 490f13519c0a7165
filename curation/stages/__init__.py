"""The stages of curation: functions from files to files, for any engine to run.

A stage either works on one shard (``work(outputs, shard)``, in parallel over shards) or runs once (``work(outputs)``).
Each finds out by fingerprint whether its output is still good, and keeps it then. The arithmetic is in the modules above
this package; here is what is read, what is written, and what it depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from curation.errors import CurationError
from curation.manifest import write_manifest
from curation.outputs import Outputs
from curation.samples import Shard
from curation.stages.archives import archive
from curation.stages.embeddings import captions, concepts, embed
from curation.stages.index import index_captions, index_images, mentions
from curation.stages.vocabulary import candidates, choose_vocabulary, nouns, visualness
from curation.stages.work import Forecast


class Stage(NamedTuple):
    """One step of a run. ``needs``: the stages whose outputs it reads."""

    name: str
    work: Callable[..., None]
    per_shard: bool
    needs: tuple[str, ...]


def plan(outputs: Outputs) -> list[Stage]:
    """The stages of a run, in order. Each needs the ones before it to be finished for all shards."""
    config = outputs.config
    searched = {"text": "text index"}.get(config.archive.expansion, "index")
    steps = [
        (True, Stage("embed", embed, True, ())),
        (config.vocabulary.built, Stage("nouns", nouns, True, ("embed",))),
        (True, Stage("candidates", candidates, False, ("nouns",))),
        (True, Stage("visualness", visualness, True, ("embed", "candidates"))),
        (True, Stage("vocabulary", choose_vocabulary, False, ("visualness",))),
        (True, Stage("concepts", concepts, True, ("embed", "vocabulary"))),
        (not config.retrieval.data, Stage("index", index_images, False, ("embed",))),
        (config.archive.expansion == "text", Stage("captions", captions, True, ("embed",))),
        (config.archive.expansion == "text", Stage("text index", index_captions, False, ("captions",))),
        (True, Stage("mentions", mentions, False, ("embed", "vocabulary"))),
        (True, Stage("archive", archive, True, ("embed", "concepts", "vocabulary", "mentions", searched))),
        (True, Stage("manifest", write_manifest, False, ("archive",))),
    ]
    return [stage for needed, stage in steps if needed]


def run_stage(stage: Stage, outputs: Outputs, shard: Shard | None = None) -> None:
    """Run one stage, on one shard where it works on shards. Any error becomes one line that names the shard.

    A shard is worked on in one thread: the engine runs many shards at once, and results must not depend on how many.
    """
    if stage.per_shard:
        import faiss
        import torch

        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
    try:
        stage.work(outputs, shard) if stage.per_shard else stage.work(outputs)
    except (CurationError, Forecast):
        raise
    except Exception as error:
        where = shard.path if shard else outputs.folder
        reason = " ".join(str(error).split())[:500]
        raise CurationError(f"{where}: stage {stage.name} failed: {type(error).__name__}: {reason}") from error
