"""Networks and solvers that the methods share; nothing here knows of files, clocks or processes."""
