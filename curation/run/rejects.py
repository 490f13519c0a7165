"""What a run could not use, by reason: for the terminal, the report and verify."""

from __future__ import annotations

from dataclasses import dataclass, field

from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import blocks
from curation.base.terminal import printable
from curation.diagnosis import LEAST, kind_of, too_many
from curation.run.records import recorded
from curation.run.run import Run
from curation.samples import NO_KEY, Shard

EXAMPLES = 2
UNREADABLE = "the shard cannot be read"  # the one reject of a shard that was left out, which has no key
NOTABLE = 0.01  # share of rejects that somebody should look at


@dataclass
class RejectGroup:
    """The rejects of one kind."""

    kind: str
    count: int = 0
    examples: list[tuple[Shard, str, str]] = field(default_factory=list)  # shard, key and whole reason

    def line(self) -> str:
        """One line: ``3 x caption is empty, such as 000012 (00001)``."""
        keys = [printable(key) for _, key, _ in self.examples]
        shards = [shard.name for shard, _, _ in self.examples]
        shown = ", ".join(f"{key} ({name})" if key else name for key, name in zip(keys, shards, strict=True))
        return f"{self.count:,} x {self.kind}, such as {shown}"


def read_rejects(run: Run) -> list[RejectGroup]:
    """The rejects of all shards by reason, the most frequent first; a shard whose file is missing has none."""
    groups: dict[str, RejectGroup] = {}
    for shard in run.shards:
        path = run.of_shard("rejects", shard)
        if not files.exists(path):
            continue
        for block in blocks(path, ["key", "reason"]):
            for key, reason in zip(block["key"].to_pylist(), block["reason"].to_pylist(), strict=True):
                kind = kind_of(reason) if key or reason == NO_KEY else UNREADABLE
                group = groups.setdefault(kind, RejectGroup(kind))
                group.count += 1
                if len(group.examples) < EXAMPLES:
                    group.examples.append((shard, key, reason))
    return sorted(groups.values(), key=lambda group: (-group.count, group.kind))


def main_reasons(run: Run) -> str:
    """The most frequent reasons, for a message."""
    return "; ".join(group.line() for group in read_rejects(run)[:3])


def is_notable(counts: dict[str, int]) -> bool:
    """Whether so many samples of a run are rejects that somebody should look at them."""
    return counts["rejects"] > NOTABLE * counts["samples"]


def check_rejects(run: Run) -> None:
    """Raises CocuError where the shards together have more rejects than ``max_rejects`` allows."""
    counts = [recorded(path, "embed").get("counts", {}) for path in run.of_shards("embeddings")]
    rejects = sum(count.get("rejects", 0) for count in counts)
    samples = sum(count.get("samples", 0) for count in counts)
    if samples >= LEAST and rejects > run.config.max_rejects * samples:
        share = too_many(rejects, samples, run.config.max_rejects)
        raise CocuError(f"{run.path('rejects')}: {share}: {main_reasons(run)}")
