"""The admin port: health, metrics and API of a running engine."""
