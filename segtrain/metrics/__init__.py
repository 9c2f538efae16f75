"""Count what the benchmarks count, in their own way.

May import: errors, contracts, structures, visualization.
"""
