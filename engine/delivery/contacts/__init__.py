"""Contacts: found, created and brought up to date, in the fewest calls, and never wrong.

Pure are ``working_out`` (what is to be written), ``resolving`` (what an answer means),
``knowledge`` (what is known of a contact, as answers come), ``first_contact`` (which call comes
first where nothing is known) and ``selection`` (since when a property is selected). ``notes`` are
the transactions, ``upserting`` makes the calls; ``sync_contacts`` is what the actors ask.
"""
