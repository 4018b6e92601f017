"""``python -m mpq``: the same as the command ``mpq``."""

import sys

from mpq.cli.main import main

sys.exit(main())
