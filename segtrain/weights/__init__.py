"""Read other people's weights.

May import: errors.
"""
