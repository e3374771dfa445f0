"""Contacts: found, created and brought up to date, in the fewest calls.

Pure are ``resolving`` (the next call by each answer), ``working_out`` (the fields to be written),
``learned_contact`` (what is known of a contact, as answers come), ``beginning`` (the first call)
and ``selected_properties`` (since when each is selected).
``stored_contact`` has the transactions, ``update_state`` holds one update, ``upserting`` makes its
calls. ``scope`` is one sync's contacts in its workspace.
"""
