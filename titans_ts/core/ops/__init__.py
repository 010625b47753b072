"""The update rule of the memory, once as its definition and once for every way to compute it fast.

All have one contract: `op(state, tokens, rule) -> (reads, state)`.
"""
