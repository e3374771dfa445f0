"""``python -m amplitude_intercom.engine`` is the command ``amplitude-intercom``."""

from amplitude_intercom.engine.cli import main

main()
