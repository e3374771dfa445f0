"""Typed clients and servers of outside interfaces; no policy lives here.

The contract of a source is ``transports.contract``; ``transports.conformance`` checks it.
"""
