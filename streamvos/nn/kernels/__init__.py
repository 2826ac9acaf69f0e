"""Optional GPU kernels in Triton, imported when they first run.

On a GPU propagation and matching are bound by memory traffic: the products of all references with all
targets. A kernel forms a block of products and reduces it at once (a softmax, the k best, a minimum per
object); only sums, candidates and minima reach memory. Triton comes with CUDA builds of torch. Where it is
missing, or a kernel does not compile, tiles of torch's operations work (`choice`), after one warning.

    TRITON_INTERPRET=1 python -m pytest tests/nn/kernels       # the same kernels on a CPU
"""
