"""The durable store between intake and delivery; dead letters live in it.

``spool`` is its face on the event loop. Below it: ``feed`` (loading, settling), ``appends``
(batches that go in together), ``writer`` (one thread, group commit), ``database`` (when the disk
fails or is full, with ``reserve``), ``store`` (records and accounting; ``seen``, ``dead_letters``,
``directory``, ``claims``, ``meta`` beside), ``schema`` (tables, opening), ``lock`` (one process),
``reading`` and ``examine`` (looking at a file from outside).
"""
