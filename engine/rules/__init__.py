"""What becomes of an event, by rule: pure functions and values, without clock and I/O."""
