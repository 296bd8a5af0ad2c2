"""``python -m clustermim_fast`` is the console script ``clustermim``."""

import sys

from clustermim_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
