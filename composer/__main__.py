"""``python -m composer``: the command line."""

import sys

from composer.cli import main

sys.exit(main())
