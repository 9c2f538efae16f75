"""Predict whole images by the published protocols.

May import: errors, contracts, structures, layers, data.
"""
