"""What each page shows, looked up: from a finished run and its catalogue to HTML, without a server."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc

from curation.base import files
from curation.base.errors import CocuError
from curation.base.markup import text
from curation.base.ragged import Ragged
from curation.concepts import concept_key
from curation.run.run import Run
from curation.tools.browse import gallery
from curation.tools.browse.catalogue import Catalogue, Postings
from curation.tools.browse.edits import SHOWS, SORTS, VocabularyTable
from curation.tools.browse.evidence import Evidence, Neighbour, archive_of, mentioning
from curation.tools.browse.pages import concept as concept_pages
from curation.tools.browse.pages import duplicates as duplicate_pages
from curation.tools.browse.pages import home as home_page
from curation.tools.browse.pages import image as image_page
from curation.tools.browse.pages import rejects as reject_pages
from curation.tools.browse.pages import results
from curation.tools.browse.pages import vocabulary as vocabulary_page
from curation.tools.browse.pages.layout import PAGE, SEARCHES, Card, Site, slice_of
from curation.tools.browse.pictures import Pictures
from curation.tools.copies import Groups
from curation.tools.finder import Finder, image_embedding
from curation.tools.report.examples import rows_of, truth
from curation.vocabulary import Vocabulary, read_vocabulary

FREQUENT = 60  # concepts on the first page
MATCHES = 200  # concepts that a search lists
NEAREST_PAGES = 20  # of images that are nearest to words
DUPLICATES = 12  # of each group
REJECTS = 4  # of each kind on the first page of rejects


@dataclass(frozen=True)
class Views:
    """The pages of a run. Every method raises CocuError for what is not there."""

    run: Run
    catalogue: Catalogue
    table: VocabularyTable
    pictures: Pictures
    source_pictures: Pictures  # of the run whose images are retrieved: the same, where that is the run itself

    @cached_property
    def finder(self) -> Finder:
        """Searches by words and by images."""
        return Finder(self.run)

    @cached_property
    def evidence(self) -> Evidence:
        """Looks up neighbours."""
        return Evidence(self.run, self.catalogue)

    def warm(self) -> None:
        """Load what the first search and the first image would wait for."""
        _ = self._ids, self._exact_ids, self._counts, self.catalogue.concept_counts, self.catalogue.rejects
        with contextlib.suppress(CocuError):  # its page says why it cannot be read
            self.table.view("all", "count", "")
        if self.catalogue.starts[-1]:
            self.evidence.neighbours(0)
        if self.finder.has_encoder:
            self.finder.nearest(self.finder.embed_words("a photo"), 1)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The concepts of the run."""
        return read_vocabulary(self.run.vocabulary)

    @cached_property
    def _ids(self) -> dict[tuple[str, ...], int]:
        return {concept_key(name): number for number, name in enumerate(self.vocabulary.concepts)}

    @cached_property
    def _exact_ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.vocabulary.concepts)}

    @cached_property
    def _counts(self) -> dict[str, int]:
        return files.read_json(self.run.manifest)["counts"]

    def _cards(self, rows: Iterable[int], lines: Iterable[str], concept: int | None = None) -> list[Card]:
        """Cards of rows, with a line each; whether the picture shows a concept, where one is asked for."""
        cards = []
        name = None if concept is None else concept_key(self.vocabulary.concepts[concept])
        for row, line in zip(rows, lines, strict=False):
            position = self.catalogue.position(row)
            is_shown = None if name is None else self.pictures.shows(*position, self.catalogue.key(row), name)
            cards.append(Card(row, self.catalogue.caption(row), line, is_shown))
        return cards

    # --- home and searches ----------------------------------------------------------------------------------------------

    def home(self, site: Site, draw: int) -> str:
        """The first page with the random images of a draw."""
        counts = self.catalogue.concept_counts
        frequent = np.argsort(-counts, kind="stable")[:FREQUENT].tolist()
        concepts = [(self.vocabulary.concepts[number], int(counts[number])) for number in frequent if counts[number]]
        size = len(self.catalogue)
        rows = np.random.default_rng(draw).choice(size, min(PAGE // 2, size), replace=False).tolist()
        return home_page.home(site, self._counts, concepts, self._cards(rows, [""] * len(rows)), draw)

    def concept_named(self, name: str) -> int | None:
        """The id of a concept, by its name or what it is matched by; None for no concept of the vocabulary."""
        return self._exact_ids.get(name, self._ids.get(concept_key(name)))

    def search(self, site: Site, query: str, by: str, page: int) -> str:
        """What a search gives; ``by`` is one of SEARCHES."""
        if by not in SEARCHES:
            raise CocuError(f"search: {by} is none of {', '.join(SEARCHES)}")
        if by == "concept":
            return self._concepts(site, query)
        if by == "words":
            if page > NEAREST_PAGES:
                raise CocuError(f"search: shows the nearest {NEAREST_PAGES * PAGE} images only")
            rows, cosines = self.finder.nearest(self.finder.embed_words(query), page * PAGE)
            total = NEAREST_PAGES * PAGE if len(rows) == page * PAGE < len(self.catalogue) else len(rows)
            total = min(total, len(self.catalogue))
            part, lines = (
                rows[slice_of(page)].tolist(),
                [f"{cosine:.3f}" for cosine in cosines[slice_of(page)].tolist()],
            )
        else:
            rows = self.catalogue.rows_saying(query) if by == "caption" else self.catalogue.rows_of_key(query.strip())
            total, part = len(rows), rows[slice_of(page)].tolist()
            lines = [self.catalogue.key(row) if by == "key" else "" for row in part]
            lines = [text(line, 60) for line in lines]
        return results.images(site, query, by, self._cards(part, lines), page, total)

    def _concepts(self, site: Site, query: str) -> str:
        names = self.vocabulary.concepts
        wanted = query.casefold().strip()
        matches = [number for number, name in enumerate(names) if wanted and wanted in name.casefold()]
        matches.sort(key=lambda number: -int(self.catalogue.concept_counts[number]))
        listed = [(names[number], int(self.catalogue.concept_counts[number])) for number in matches[:MATCHES]]
        near = difflib.get_close_matches(wanted, names[:20_000], 3) if not listed else []
        return results.concepts(site, query, listed, f"; near are {', '.join(near)}" if near else "")

    def like(self, site: Site, row: int) -> str:
        """The images that look like one of the run."""
        query = image_embedding(self.run, *self.catalogue.position(row))
        rows, cosines = self.finder.nearest(query, PAGE)
        return results.alike(site, row, self._cards(rows.tolist(), [f"{cosine:.3f}" for cosine in cosines.tolist()]))

    # --- a concept ------------------------------------------------------------------------------------------------------

    def concept(self, site: Site, name: str, view: str, page: int, companion: str | None) -> str:
        """A view of a concept's gallery; ``companion``: only where it is clustered with this concept, "-" for none."""
        number = self.concept_named(name)
        if number is None:
            raise CocuError(f"{name} is no concept of the run; its table of the vocabulary says why, where it was one")
        if view not in gallery.VIEWS:
            raise CocuError(f"{view} is none of {', '.join(gallery.VIEWS)}")
        postings = self.catalogue.postings(number)
        facts = concept_pages.Facts(
            self.vocabulary.concepts[number],
            len(postings),
            len(postings) - int(np.count_nonzero(postings.said)),
            int(self.vocabulary.counts[number]),
            float(self.vocabulary.visualness[number]),
        )
        if view == "clusters":
            clusters = [
                concept_pages.Cluster(
                    self._name(group.companion), group.size, self._entries(postings, group.entries, number)
                )
                for group in gallery.groups(postings)
            ]
            return concept_pages.clusters(site, facts, clusters)

        other = None if companion is None else -1 if companion == "-" else self.concept_named(companion)
        if companion is not None and other is None:
            raise CocuError(f"{companion} is no concept of the run")
        positions = gallery.ordered(postings, view, other)
        cards = self._entries(postings, positions[slice_of(page)], number)
        return concept_pages.gallery(site, facts, view, cards, page, len(positions), companion)

    def _name(self, concept: int) -> str:
        return self.vocabulary.concepts[concept] if concept >= 0 else ""

    def _entries(self, postings: Postings, positions: np.ndarray, concept: int) -> list[Card]:
        """Cards of some entries of a concept."""
        columns = (postings.score, postings.support, postings.said)
        lines = [
            f"{score:.2f} · in {support} captions" + ("" if said else '<span class="tag new">new</span>')
            for score, support, said in zip(*(column[positions].tolist() for column in columns), strict=True)
        ]
        return self._cards(postings.row[positions].tolist(), lines, concept)

    # --- an image -------------------------------------------------------------------------------------------------------

    def image(self, site: Site, row: int) -> str:
        """An image with its archive, the reasons, and its neighbours."""
        shard, at = self.catalogue.position(row)
        key, caption = self.catalogue.key(row), self.catalogue.caption(row)
        sidecar = self.pictures.sidecar(shard, at, key)
        visible = truth(sidecar)
        neighbours: list[Neighbour] = []
        problem = ""
        try:
            neighbours = self.evidence.neighbours(row)
        except CocuError as error:  # the archive can be shown without them
            problem = str(error)

        names = None if visible is None else sorted(" ".join(name) for name in visible)
        sample = image_page.Sample(
            row, len(self.catalogue) - 1, self.run.shards[shard].name, at, key, caption,
            str(sidecar.get("attribution", "")), names,
        )  # fmt: skip
        entries = archive_of(self.run, shard, at)
        concepts = self._reasons(entries, shard, at, neighbours, visible)
        evidence = self.evidence
        return image_page.image(site, sample, concepts, neighbours, evidence.retrieves, evidence.is_own, problem)

    def _reasons(
        self,
        entries: Sequence[dict[str, Any]],
        shard: int,
        at: int,
        neighbours: Sequence[Neighbour],
        visible: set[tuple[str, ...]] | None,
    ) -> list[image_page.Concept]:
        """The concepts of an archive with what speaks for them."""
        ids = np.array([self._exact_ids.get(entry["concept"], -1) for entry in entries], np.int64)
        mentioned = Ragged.from_lists([sorted(neighbour.concepts) for neighbour in neighbours])
        because = mentioning(ids, mentioned)
        (sample,) = rows_of(self.run.of_shard("embeddings", self.run.shards[shard]), [at], ["concepts"])
        said = np.isin(ids, sample["concepts"] or []).tolist()
        return [
            image_page.Concept(
                entry, is_said, None if visible is None else concept_key(entry["concept"]) in visible, reasons
            )
            for entry, is_said, reasons in zip(entries, said, because, strict=True)
        ]

    # --- vocabulary and rejects -----------------------------------------------------------------------------------------

    def edited_vocabulary(self, site: Site, show: str, sort: str, query: str, page: int) -> str:
        """A view of the vocabulary's table."""
        if show not in SHOWS or sort not in SORTS:
            raise CocuError(f"vocabulary: show is one of {', '.join(SHOWS)}, sort one of {', '.join(SORTS)}")
        entries = self.table.view(show, sort, query)
        return vocabulary_page.vocabulary(site, entries, page, show, sort, query, self.table.path, self.table.edited)

    def rejects(self, site: Site, kind: str | None, page: int) -> str:
        """What could not be used: all kinds of reasons, or a page of one of them."""
        table = self.catalogue.rejects
        counts = {item["values"]: item["counts"] for item in pc.value_counts(table["kind"]).to_pylist()}
        if kind is None:
            groups = [
                reject_pages.Kind(name, count, self._rejects(np.array(self._of_kind(name)[:REJECTS])))
                for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            ]
            return reject_pages.kinds(site, groups, self._counts["samples"])
        if kind not in counts:
            raise CocuError(f"rejects: no sample was rejected because {kind}")
        numbers = self._of_kind(kind)[slice_of(page)]
        return reject_pages.kind_page(site, reject_pages.Kind(kind, counts[kind], self._rejects(numbers)), page)

    def _of_kind(self, kind: str) -> np.ndarray:
        return np.flatnonzero(pc.equal(self.catalogue.rejects["kind"], kind).to_numpy(zero_copy_only=False))

    def _rejects(self, numbers: np.ndarray) -> list[reject_pages.Reject]:
        rows = self.catalogue.rejects.take(numbers).to_pylist()
        return [
            reject_pages.Reject(number, self.run.shards[row["shard"]].name, row["key"] or "", row["reason"])
            for number, row in zip(numbers.tolist(), rows, strict=True)
        ]

    # --- duplicates -----------------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> Groups:
        """Groups of near-identical images."""
        return Groups(self.run)

    def duplicates(self, site: Site, page: int) -> str:
        """A page of the groups of near-identical images."""
        numbers = range(len(self.groups))[slice_of(page, duplicate_pages.GROUPS)]
        shown = []
        for group in map(self.groups.rows, numbers):
            rows = group[:DUPLICATES]
            lines = [text(self.catalogue.key(row), 60) for row in rows]
            shown.append(duplicate_pages.Group(len(group), self._cards(rows, lines)))
        return duplicate_pages.groups(site, shown, self.groups.duplicates, len(self.groups), page)

    # --- pictures -------------------------------------------------------------------------------------------------------

    def picture(self, row: int, side: int) -> bytes:
        """A thumbnail of an image of the run. Raises InputError where there is none."""
        shard, at = self.catalogue.position(row)
        return self.pictures.thumbnail(shard, at, self.catalogue.key(row), side)

    def retrieved_picture(self, row: int, side: int) -> bytes:
        """A thumbnail of an image of the run that is retrieved from, by its row of the index."""
        if self.evidence.is_own:
            return self.picture(row, side)
        if not 0 <= row < self.evidence.rows:
            raise CocuError(f"row {row}: the index has {self.evidence.rows:,}")
        shard, at = self.evidence.position(row)
        return self.source_pictures.thumbnail(shard, at, self.evidence.key_and_caption(shard, at)[0], side)

    def reject_picture(self, number: int, side: int) -> bytes:
        """A thumbnail of a reject, where its image can be decoded after all."""
        if not 0 <= number < len(self.catalogue.rejects):
            raise CocuError(f"reject {number}: the run has {len(self.catalogue.rejects):,}")
        (row,) = self.catalogue.rejects.slice(number, 1).to_pylist()
        if not row["key"]:
            raise CocuError(f"reject {number}: has no key")
        at = self.catalogue.shard_rows[row["shard"]] + row["row"]
        return self.pictures.thumbnail(row["shard"], at, row["key"], side)
