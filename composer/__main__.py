"""``python -m composer``: the command line."""

import sys

from composer.cli.commands import main

sys.exit(main())
