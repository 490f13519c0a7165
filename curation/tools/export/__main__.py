"""``python -m curation.tools.export``."""

import sys

from curation.tools.export.command import main

if __name__ == "__main__":
    sys.exit(main())
