"""``python -m training``: fit, validate and test GroupViT."""

import sys

from training.cli import main

if __name__ == "__main__":
    sys.exit(main())
