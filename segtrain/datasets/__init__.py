"""Read the data sets, one file per data set.

May import: errors, rng, contracts, structures, data.
"""
