"""`python -m streamvos.cli`, where the script is not on the path."""

from streamvos.cli import main

main()
