"""`python -m streamvos`, where the script is not on the path."""

import sys

from streamvos.cli import main

sys.exit(main())
