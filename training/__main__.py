"""``python -m training``: fit, validate and test a GroupViT or the places of a CLIP; ``cocu train`` is its fit."""

import sys

from curation.base.terminal import run_command


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""

    def work() -> int:
        from training.cli import main as train

        return train(arguments)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
