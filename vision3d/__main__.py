"""``python -m vision3d`` is the command ``vision3d``."""

import sys

from vision3d.cli import main

sys.exit(main())
