"""Agents: everything that proposes deltas. They see the environment only through its public face."""

import editenv  # noqa: F401 - lets the import system find modules by the names they had in version 0.1
