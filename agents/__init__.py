"""Agents: everything that proposes deltas. They see the environment only through its public face."""
