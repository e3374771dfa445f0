"""The commands, one module each; ``engine.cli`` only parses their arguments."""
