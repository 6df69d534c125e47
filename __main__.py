"""`python -m gradfuse` is the command `gradfuse`."""

import sys

from .cli import main

sys.exit(main())
