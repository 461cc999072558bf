"""Pallas (Mosaic GPU) kernels. They know arrays only: nothing here imports `sixbit_jax`.

One folder an op, with the same file names in each:

- `api.py` checks the arguments and picks: the kernel on CUDA, the emulation elsewhere;
- `kernel_sm90.py` is the kernel for Hopper (`kernel_sm100.py` for Blackwell);
- `config.py` is what can be tuned: a heuristic, and `tuned.json` for devices that were measured;
- `emulation.py` is the same block algorithm in plain JAX: what the tests hold the kernel against.
"""
