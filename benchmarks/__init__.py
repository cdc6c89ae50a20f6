"""Benchmarks: agents on suites, aggregated and reported. They know no agent's inside."""

import editenv  # noqa: F401 - lets the import system find modules by the names they had in version 0.1
