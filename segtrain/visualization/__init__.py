"""Draw what people look at.

May import: errors, structures, runtime.
"""
