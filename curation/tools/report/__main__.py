"""``python -m curation.tools.report OUT``, which is ``cocu report``."""

import sys

from curation.tools.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
