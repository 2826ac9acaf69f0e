"""`python -m bench`, in a checkout: the same as `streamvos bench`."""

import sys

from streamvos.cli import main

from . import door  # noqa: F401 - the one that is meant, whatever is installed

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
