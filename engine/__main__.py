"""``python -m engine`` is the command ``amplitude-intercom``."""

from engine.cli import main

main()
