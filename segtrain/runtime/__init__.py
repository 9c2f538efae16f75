"""Handle processes, signals, folders and disks.

May import: errors.
"""
