"""What the end of a run says about the words that it left out."""

from __future__ import annotations

import math

from curation.tools.report.survey import Candidate
from pipelines.summary import NAMED, left_out


def candidate(concept, count, reason, written=None):
    return Candidate(concept, count, math.nan, not reason, reason, written or count)


def test_frequent_words_are_named_by_reason_the_most_frequent_first():
    lines = left_out(
        [
            candidate("dog", 900, ""),
            candidate("day", 80, "not visual"),
            candidate("white", 20, "not a noun", 3779),
            candidate("red", 62, "not a noun", 2585),
            candidate("zebra", 3, "rare"),
            candidate("cream cone", 14, "part of ice cream cone"),
            candidate("chain link", 13, "part of chain link fence"),
            candidate("black", 58, "not a noun", 3687),
        ]
    )
    assert lines == [
        "left out, not a noun: white (3,779), black (3,687), red (2,585)",
        "left out, part of a longer name: cream cone (14), chain link (13)",
        "left out, not visual: day (80)",
    ]


def test_of_many_words_a_few_are_named():
    (line,) = left_out([candidate(f"w{number:03d}", 1000 - number, "not visual") for number in range(NAMED + 7)])
    assert line.startswith("left out, not visual: w000 (1,000), w001 (999)")
    assert line.endswith(f"w{NAMED - 1:03d} ({1001 - NAMED}) and 7 more, all in vocabulary.csv")


def test_a_vocabulary_of_a_file_has_nothing_to_say():
    assert left_out([candidate("dog", 9, ""), Candidate("cat", 0, math.nan, False, "", 0)]) == []
