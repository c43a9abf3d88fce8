"""The command line as a module: ``python -m dmm_fast`` is ``dmm-fast``."""

import sys

from dmm_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
