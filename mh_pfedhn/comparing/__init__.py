"""Comparisons of methods, settings and seeds: from a file to its runs, and through them in few simulations.

`plan.py` says what runs, `running.py` runs it, `progress.py` tells how far it is, `estimate.py` how long it will take.
"""
