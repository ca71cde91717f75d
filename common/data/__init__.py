"""Data sources and their division among simulated clients."""
