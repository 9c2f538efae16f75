"""Save and find checkpoints, each of which exists whole or not at all.

May import: errors, structures, config, runtime.
"""
