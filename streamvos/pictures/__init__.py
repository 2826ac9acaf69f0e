"""Picture files: what is in one, how it is turned, which files of a folder are frames, and in which order."""
