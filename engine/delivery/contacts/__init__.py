"""Contacts: found, created and brought up to date, in the fewest calls.

Pure are ``resolving`` (the next call, by each answer), ``working_out`` and ``drafts`` (the fields
to be written), ``learned_contact`` (the facts about a contact, as answers come) and ``beginning``
(the facts with which an update begins). ``selected_properties`` keeps since when each is selected.
``stored_contact`` has the transactions, ``update_state`` holds one update, ``upserting`` makes its
calls. ``scope`` is one sync's contacts in its workspace.
"""
