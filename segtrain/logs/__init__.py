"""Write down what a run does: console, metrics, events, summary.

May import: errors, contracts, runtime.
"""
