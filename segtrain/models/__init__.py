"""Define the systems, one file per system.

May import: errors, contracts, structures, layers, backbones.
"""
