"""A text of settings with secrets of every kind."""

from __future__ import annotations

from typing import Final

KEY: Final = "0123456789abcdef0123456789abcdef"
TOKEN: Final = "dG9rOjEyMzQ1Njc4XzlhYmNfZGVmMDp3"
PRESENT: Final = f"""\
[admin]
token = 'admin-secret'  # never admin-secret again

[sources.kafka]
servers = ["one", "two"]
password = "env:KAFKA"

[[sync]]
name = "a"
amplitude_api_keys = ["{KEY}", "env:KEY", "*", "short", "brief"]
intercom = {{ access_token = "{TOKEN}", region = "us" }}

[[sync]]
name = "b"
[sync.intercom]
access_token = '''token of
b'''
"""
