"""`python -m commands` is `moorage`."""

import sys

from commands import main

sys.exit(main())
