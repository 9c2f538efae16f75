"""Turn text into checked settings, and settings into objects. No torch.

May import: errors, contracts, data.
"""
