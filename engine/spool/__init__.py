"""The durable store between intake and delivery, of all syncs; dead letters live in it.

``spool`` is its face on the event loop; each taker sees its part (``TakerSpool``). Below it:
``appends`` (batches that go in together), ``writer`` (one thread, group commit), ``retention``
(forgetting), ``store`` (what concerns several tables), ``record_queue`` and ``settling`` (one
sync's records as they are read, and as they end or wait), ``relaying`` (a relay's requests).

Tables by subject, in the SQL that SQLite and PostgreSQL both know (``connection``, ``schema``):
``takers``, ``inbox``, ``records``, ``users``, ``relayed``, ``dead_letters``, ``insert_ids``,
``claims``, ``directory``, ``accounts`` (counters, minutes), ``meta`` (checkpoints, event names).
Pure: ``batches``, ``unpacking``, ``fullness``, ``rows``.
``sqlite/`` is the file: opening, healing, the lock, looking at it from outside.
"""
