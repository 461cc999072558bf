"""What `scripts/benchmark.py` measures: one module a kernel.

Each module offers `NAME`, `COLUMNS` (the table's), `cases() -> list[Case]` and, where there is something to tune,
`candidates(case)` and `timed(case, config)`. A case runs ours and its peers in one process, in interleaved rounds, on
random data, and checks the result before it counts the time.
"""
