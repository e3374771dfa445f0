"""Speed and cost, measured against a bare reference: ``python -m benchmarks``.

Machines differ, so each figure is a ratio. The reference runs beside the measured program, on the
same bytes, with the same Python and as many processes, and does only the indispensable part.
"""
