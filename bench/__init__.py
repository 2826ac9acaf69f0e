"""What a stream will cost on this machine: latency, capacity, accuracy under time, and how that compares.

    python -m bench latency --methods tvos,frtm-fast --size 240        # in a checkout
    streamvos bench latency --methods tvos,frtm-fast --size 240        # installed

`door` is the command line, `results` the format of every figure, `runner` measures. The files `test_*.py` are
micro-benchmarks: `pytest bench/ --benchmark-only`.
"""
