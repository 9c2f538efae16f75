"""Offer the layers that several backbones and models share.

May import: errors, structures.
"""
