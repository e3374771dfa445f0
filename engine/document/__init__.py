"""The settings file as a document: read with its version, edited key by key, written, kept."""
