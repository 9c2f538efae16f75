"""Update weights: optimizers, schedules, precision.

May import: errors.
"""
