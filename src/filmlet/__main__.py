"""`python -m filmlet` is the command line."""

import sys

from filmlet.cli import main

sys.exit(main())
