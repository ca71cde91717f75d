"""`python -m mh_pfedhn` is the command `mh-pfedhn`."""

import sys

from mh_pfedhn.cli import main

sys.exit(main())
