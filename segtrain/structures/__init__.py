"""Hold the plain values that all parts share: samples, instances, labels, boxes, run lengths.

May import: errors.
"""
