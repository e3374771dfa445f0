"""Requests that go on to Amplitude as they came: in order per device, for as long as it takes."""
