"""Compute loss terms as pairs of sum and count.

May import: errors, contracts, structures.
"""
