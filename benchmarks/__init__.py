"""How fast it is, measured against what is possible here: ``python -m benchmarks``.

Machines differ, so each figure is a ratio to a bare reference that runs beside it: the same bytes,
the same Python, as many processes, and nothing that could be left out.
"""
