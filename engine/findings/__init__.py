"""Findings about settings, workspaces and samples of events: errors and surprises. Pure."""
