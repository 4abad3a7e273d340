"""`python -m gamut` and `torchrun -m gamut`: the same as the command `gamut`."""

import sys

from gamut.cli import main

sys.exit(main())
