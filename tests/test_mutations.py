"""The table of mutations is about the code as it is; ``make mutants`` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import apply
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent


def test_every_mutation_changes_one_piece_of_code_that_is_there_and_names_tests_that_are():
    for mutation in MUTATIONS:
        assert mutation.before != mutation.after
        assert (ROOT / mutation.file).read_text().count(mutation.before) == 1, mutation
        for test in mutation.tests.split():
            file, _, function = test.partition("::")
            assert f"def {function}" in (ROOT / "tests" / file).read_text(), test
    assert len({mutation[:1] + mutation[2:4] for mutation in MUTATIONS}) == len(MUTATIONS) > 100


def test_a_mutation_is_made_in_a_copy_and_a_stale_one_is_refused(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    assert apply(Mutation("a.py", "", "x = 1", "x = 2"), tmp_path) == "x = 1\ny = 1\n"
    assert (tmp_path / "a.py").read_text() == "x = 2\ny = 1\n"
    for before, times in (("= 3", 0), ("y", 1), (" = ", 2)):
        if times != 1:
            with pytest.raises(ValueError, match=f"is {times} times in a.py"):
                apply(Mutation("a.py", "", before, ""), tmp_path)
