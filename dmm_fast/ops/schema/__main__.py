"""The C++ of the table of ops: ``python -m dmm_fast.ops.schema --cpp``."""

import sys

from dmm_fast.ops.schema._cpp import main

sys.exit(main())
