"""A table of what came of many broken inputs, by kind: used, rejected with a reason, stopped with one line, leaked.

    python tests/faults.py

What leaked is an exception that no user should see, or a sample that training and curation disagree about: there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from curation.base.terminal import plain_table

COUNTED = ("tried", "used", "rejected", "stopped", "leaked")
CAMPAIGNS = {  # script and its options -> MiB of memory, above its own, that it may take
    ("mutated_images.py", "--images", "5000"): 300,
    ("hostile_tars.py", "--mebibytes", "600"): 100,
}


def main() -> int:
    """Run every campaign in a process of its own; returns 1 if anything leaked or took too much memory."""
    table = plain_table(("kind", *COUNTED), left=["kind"], gap=2)
    failures = []
    for (script, *options), limit in CAMPAIGNS.items():
        command = [sys.executable, str(Path(__file__).with_name(script)), *options]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        outcome = json.loads(run.stdout.splitlines()[-1])
        for kind, counts in outcome["kinds"].items():
            table.add_row(kind, *(f"{counts[name]:,}" for name in COUNTED))
            failures += [kind] * (counts["leaked"] > 0)
        print(f"{script}: at most {outcome['mib']:.0f} MiB above the process's own, {limit} are allowed")
        failures += [f"memory of {script}"] * (outcome["mib"] > limit)

    Console().print(table)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
