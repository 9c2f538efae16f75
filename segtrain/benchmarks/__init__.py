"""Deal with the outside world of a benchmark: archives, conversions, submissions.

May import: errors, contracts, config, runtime, logs, structures, visualization, data, datasets.
"""
