"""Turn images into feature maps with known strides.

May import: errors, layers, weights.
"""
