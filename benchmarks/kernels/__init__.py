"""What `scripts/benchmark.py` measures: one module a kernel.

Each module offers `NAME`, `COLUMNS` (the table's), `cases() -> list[Case]`, `measure(case, ceilings)` and
`row(result)`; where there is something to tune also `tuned_cases()`, `candidates(case)`, `timed(case, config)` and
`table_key(case)`. A case runs ours and its peers in one process, in interleaved rounds, on random data, and checks the
result before it counts the time.
"""
