"""The stages of curation: functions from files to files, for any engine to run.

stage.py       what a stage is, and how it is run: kept by its fingerprint, or computed
plan.py        the stages of a run, in order
embeddings.py  tars, or imported embeddings -> embeddings and rejects; captions -> their embeddings and concepts
nouns.py       captions -> which of their words are nouns, and what is counted of them
vocabulary.py  nouns -> candidates -> visualness -> vocabulary
index.py       embeddings -> an index, trained, filled, merged, and tuned to the recall
mentions.py    what the captions of all indexed images mention
graph.py       the neighbours of all images, where the index is not exact or duplicates count once
duplicates.py  groups of near-identical images
archives.py    expansion, ranking and clusters of every anchor

The arithmetic is in the modules of :mod:`curation`; here is what is read, what is written, and what it depends on.
"""

from curation.run.stages.plan import plan
from curation.run.stages.stage import Stage, compare, run_stage

__all__ = ["Stage", "compare", "plan", "run_stage"]
