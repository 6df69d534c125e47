"""`python -m gradfuse` is the command `gradfuse`."""

import sys

from .cli import run

sys.exit(run())
