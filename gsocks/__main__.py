"""``python -m gsocks``"""

import sys

from gsocks.main import main

sys.exit(main())
