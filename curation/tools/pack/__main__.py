"""Run :mod:`curation.tools.pack`."""

import sys

from curation.tools.pack.command import main

sys.exit(main())
