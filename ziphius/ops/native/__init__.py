"""The operations on a CPU, in C: fp32 and bf16 tensors, fp32 arithmetic, one pass over the data each.

Results do not depend on the number of threads. `build.library()` compiles and loads the kernels at first use.
"""
