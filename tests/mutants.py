"""``make mutants``: small mistakes in the numeric core, one at a time, each of which must make a test fail.

The mistakes are those of ``tests/mutations.py``. Each is made in a copy of the packages, and the tests that it names are
run there, up to the first failure. A mistake that no test notices survives; the exit code is 1 unless it is listed as
equivalent, with why. A process that has imported torch and the rest forks for each mistake, which costs its tests only.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
CARRIED = (
    "cocu", "curation", "segmenters", "evaluation", "training", "pipelines", "experiments", "tests", "setup.cfg",
    "pyproject.toml", "Makefile",
)  # fmt: skip
WARM = (  # what takes long to import, none of it ours
    "numpy", "torch", "pyarrow.parquet", "faiss", "yaml", "PIL.Image", "lightning.pytorch.cli", "timm.data", "hypothesis",
    "open_clip", "sklearn.metrics", "transformers.models.groupvit.modeling_groupvit", "webdataset", "rich.console",
)  # fmt: skip
LIMIT = 600  # seconds, after which a mutant has made something endless, which counts as noticed
PASSED, FAILED, BROKEN_IMPORT = 0, 1, 2  # exit codes of pytest


class Outcome(NamedTuple):
    """What became of a mutation."""

    mutation: Mutation
    word: str  # noticed, survived, equivalent, or what is wrong with the entry
    seconds: float

    @property
    def fine(self) -> bool:
        return self.word in ("noticed", "equivalent")


def apply(mutation: Mutation, root: Path) -> str:
    """Make the mistake in the copy at ``root``; returns what the file was. Raises ValueError for a stale entry."""
    path = root / mutation.file
    content = path.read_text()
    if content.count(mutation.before) != 1:
        raise ValueError(f"{mutation.before!r} is {content.count(mutation.before)} times in {mutation.file}, not once")
    path.write_text(content.replace(mutation.before, mutation.after))
    return content


def run_tests(root: Path, tests: list[str], log: Path, keep_bytecode: bool = False, limit: float = float(LIMIT)) -> int:
    """The exit code of pytest on ``tests`` at ``root``, in a fork of this process; FAILED after ``limit`` seconds."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        _run_forked(root, tests, log, keep_bytecode)

    ends = time.monotonic() + limit
    while time.monotonic() < ends:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(process, 9)
    os.waitpid(process, 0)
    return FAILED


def _run_forked(root: Path, tests: list[str], log: Path, keep_bytecode: bool) -> None:
    """Run pytest in this process and end it."""
    code = BROKEN_IMPORT
    try:
        os.setsid()
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        os.environ["PYTHONPATH"] = str(root)
        # A mutated file must not leave bytecode for the file of before.
        sys.dont_write_bytecode = not keep_bytecode
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        if not keep_bytecode:
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.path[:] = [str(root), *(entry for entry in sys.path if entry not in ("", str(ROOT), str(ROOT / "tests")))]
        sys.modules.pop("mutations", None)

        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--basetemp={root}/.pytest"]
        code = int(pytest.main([*options, *(f"tests/{test}" for test in tests)]))
    finally:
        os._exit(code)


def try_mutation(mutation: Mutation, root: Path, log: Path) -> Outcome:
    """Make the mistake, run its tests, take it back."""
    began = time.monotonic()
    try:
        before = apply(mutation, root)
    except ValueError as error:
        return Outcome(mutation, f"stale: {error}", 0.0)
    try:
        code = run_tests(root, mutation.tests.split(), log)
    finally:
        (root / mutation.file).write_text(before)

    noticed = code in (FAILED, BROKEN_IMPORT) or code < 0  # a signal
    if not noticed and code != PASSED:
        word = f"no test was run: pytest ended with {code}"
    elif mutation.equivalent:
        word = "noticed, though it is listed as equivalent" if noticed else "equivalent"
    else:
        word = "noticed" if noticed else "survived"
    return Outcome(mutation, word, time.monotonic() - began)


def copy_packages(folder: Path) -> Path:
    """What the tests need, in a folder of its own."""
    folder.mkdir()
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy2(source, folder / name)
    return folder


def main() -> int:
    """Try the mutations; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutations whose file or code holds one of these")
    parser.add_argument("--log", default=None, help="folder to keep the tests' output in")
    args = parser.parse_args()
    chosen = [m for m in MUTATIONS if not args.words or any(word in f"{m.file} {m.before}" for word in args.words)]

    for name in WARM:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)

    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        logs = Path(args.log or scratch)
        logs.mkdir(parents=True, exist_ok=True)
        root = copy_packages(Path(scratch) / "copy")
        tests = sorted({test for mutation in chosen for test in mutation.tests.split()})
        print(f"{len(chosen)} mutations; first the {len(tests)} tests and files of tests as they are", flush=True)
        if run_tests(root, tests, logs / "unchanged.txt", keep_bytecode=True, limit=float("inf")) != PASSED:
            print((logs / "unchanged.txt").read_text())
            print("The tests fail before anything is changed.")
            return 1

        for number, mutation in enumerate(chosen, 1):
            outcome = try_mutation(mutation, root, logs / f"{number:03d}.txt")
            outcomes.append(outcome)
            print(f"{number:4d}  {outcome.seconds:5.1f} s  {outcome.word:10}  {mutation.file}", flush=True)
            if not outcome.fine:
                print(f"        - {mutation.before!r}\n        + {mutation.after!r}", flush=True)

    equivalent = [outcome.mutation for outcome in outcomes if outcome.word == "equivalent"]
    for mutation in equivalent:
        print(f"equivalent: {mutation.file}: {mutation.after!r}: {mutation.equivalent}")
    wrong = [outcome for outcome in outcomes if not outcome.fine]
    noticed = len(outcomes) - len(equivalent) - len(wrong)
    print(f"{len(outcomes)} mutations: {noticed} noticed, {len(equivalent)} equivalent, {len(wrong)} survived or wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
