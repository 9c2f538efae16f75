"""Deal with the outside world: archives, conversions, submissions, a user's photos.

May import: errors, contracts, config, runtime, logs, structures, visualization, data, datasets.
"""
