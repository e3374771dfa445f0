"""Findings about settings, workspaces and samples of events: errors and surprises.

Pure, but for ``workspace_asking``, which asks Intercom.
"""
