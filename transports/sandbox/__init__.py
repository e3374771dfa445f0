"""A local Intercom and a local Amplitude, to try things with and to test against.

Intercom: ``sandbox.sandbox`` has the rules. Amplitude: ``sandbox.local_amplitude`` has them.
"""
