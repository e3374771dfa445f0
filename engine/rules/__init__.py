"""The rules for events and user properties: pure functions and values, without clock and I/O."""
