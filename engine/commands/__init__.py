"""What the commands do, one module each; ``engine.cli`` only parses their arguments."""
