"""The comparisons of :mod:`benchmarks.agreement`: a file for each public repository.

Each has ``SOURCE``, what it compares with, and ``compare``, which runs both sides on the tiny model.
"""
