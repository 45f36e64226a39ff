"""`python -m pennyweight`."""

import sys

from pennyweight.cli import main

sys.exit(main())
