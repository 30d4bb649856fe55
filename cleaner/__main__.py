"""``python -m cleaner``: the command ``cleaner``."""

import sys

from cleaner.cli import main

sys.exit(main())
