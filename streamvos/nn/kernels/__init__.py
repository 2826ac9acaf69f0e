"""Kernels of our own for GPUs, written in Triton; loaded when they are first run, and never needed.

On a GPU propagation and matching are bound by what they write and read back: the products of all references
with all targets. A kernel forms a block of products, takes from it what is wanted (a softmax, the k best, a
minimum per object) and forgets it; only sums, candidates and minima reach memory. Triton comes with the CUDA
builds of torch. Where it is missing, or a kernel does not compile, the tiles of torch's operations do the
work (`choice`), and a warning says so once.

    TRITON_INTERPRET=1 python -m pytest tests/nn/kernels       # the same kernels on a CPU
"""
