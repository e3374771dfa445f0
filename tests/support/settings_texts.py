"""Random settings files: tables, and texts that say them with comments and odd formatting."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

Table = dict[str, Any]

KEYS = ["0123456789abcdef0123456789abcdef", "env:KEY_A", "*", "short", 'qu"ote\\d-0123456789']
WORDS = [
    "Signed Up",
    "plan",
    "seats",
    "naïve ✓",
    'qu"o',
    "C:\\x",
    "a#b",
    "x = 1",
    "[sync]",
    "tab\t",
]


def random_table(random: Random) -> Table:
    """Return a table that reads as settings, with literal secrets here and there."""
    table: Table = {"data_dir": "data"}
    if random.random() < 0.5:
        table["log"] = {"level": "info", "format": "json"}
    if random.random() < 0.5:
        table["admin"] = {"listen": "127.0.0.1:0", "token": "admin-literal-secret"}
    if random.random() < 0.3:
        table["sources"] = {"other": {"servers": ["one", "two"], "password": "hush-hush", "n": 3}}
    if random.random() < 0.3:
        table["relay"] = [{"name": "r", "amplitude_api_keys": ["relay-key-0123456789"]}]
    names = random.sample(["a", "b", "c", "d"], random.randint(0, 3))
    table["sync"] = [random_sync(random, name) for name in names]
    return table


def random_sync(random: Random, name: str) -> Table:
    """Return the table of a sync."""
    sync: Table = {"name": name, "intercom": {"access_token": f"literal-token-{name}-0"}}
    if random.random() < 0.5:
        sync["amplitude_api_keys"] = random.sample(KEYS, random.randint(0, 4))
    if random.random() < 0.5:
        sync["enabled"] = random.random() < 0.5
    if random.random() < 0.5:
        sync["intercom"]["region"] = random.choice(["us", "eu"])
    if random.random() < 0.5:
        sync["mapping"] = {"from": "user_id"}
    if random.random() < 0.7:
        sync["users"] = {"properties": random_properties(random)}
    if random.random() < 0.7:
        sync["events"] = random_events(random)
    return sync


def random_properties(random: Random) -> list[Any]:
    """Return a list of properties, some renamed."""
    names = random.sample(WORDS, random.randint(0, 5))
    return [{"from": n, "to": f"to {n}"} if random.random() < 0.3 else n for n in names]


def random_events(random: Random) -> Table:
    """Return a table of events."""
    events: Table = {"select": [random_selector(random) for _ in range(random.randint(0, 3))]}
    if random.random() < 0.5:
        events["metadata"] = random_properties(random)
    if random.random() < 0.3:
        events["money"] = {"price": "currency", "odd key": "x"}
    if random.random() < 0.3:
        events["max_age_s"] = random.choice([1, 2.5, 1e3])
    return events


def random_selector(random: Random) -> Table:
    """Return a row of the selection."""
    selector: Table = {"types": random.sample(WORDS, random.randint(1, 3))}
    if random.random() < 0.5:
        values = random.sample([1, 2.5, True, "x"], 2)
        selector["where"] = [{"property": "event.x", "op": "is", "values": values}]
    return selector


# --- changes ------------------------------------------------------------------------------


def changed(random: Random, table: Table) -> Table:
    """Return a table with some changes of its syncs, as forms make them."""
    table = deepcopy(table)
    for _ in range(random.randint(1, 3)):
        _change(random, table["sync"])
    return table


def _change(random: Random, syncs: list[Table]) -> None:
    kind = random.choice(["add", "remove", "move", "replace", "key", "key", "key", "list", "list"])
    free = [name for name in "efgh" if name not in [sync["name"] for sync in syncs]]
    if (kind == "add" and free) or not syncs:
        syncs.insert(random.randint(0, len(syncs)), random_sync(random, free[0]))
        return
    sync = random.choice(syncs)
    if kind == "remove":
        syncs.remove(sync)
    elif kind == "move":
        random.shuffle(syncs)
    elif kind == "replace":
        syncs[syncs.index(sync)] = random_sync(random, sync["name"])
    elif kind == "list":
        _change_list(random, sync)
    else:
        _change_key(random, sync)


def _change_key(random: Random, sync: Table) -> None:
    match random.randint(0, 5):
        case 0:
            sync["enabled"] = not sync.get("enabled", True)
        case 1:
            sync["intercom"]["region"] = random.choice(["us", "eu", "au"])
        case 2:
            sync.setdefault("mapping", {})["identifier"] = "email"
        case 3:
            sync.pop(random.choice(["enabled", "mapping", "users", "events"]), None)
        case 4:
            sync.setdefault("events", {})["rename"] = {"a b": "c"}
        case 5:
            sync["delivery"] = {"read_ahead": random.randint(1, 9)}


def _change_list(random: Random, sync: Table) -> None:
    users = sync.setdefault("users", {})
    events = sync.setdefault("events", {})
    holder, key = random.choice(
        [
            (users, "properties"),
            (events, "select"),
            (events, "metadata"),
            (sync, "amplitude_api_keys"),
        ]
    )
    values = holder.setdefault(key, [])
    new = random_selector(random) if key == "select" else f"new-{random.randint(0, 99)}"
    match random.randint(0, 4):
        case 0:
            values.insert(random.randint(0, len(values)), new)
        case 1:
            random.shuffle(values)
        case 2 if values:
            values.pop(random.randrange(len(values)))
        case 3 if values:
            values[random.randrange(len(values))] = new
        case 4 if key == "select" and values:
            values[0]["types"].append("one more")


# --- texts --------------------------------------------------------------------------------


class Writer:
    """Writes a table as TOML; ``comments`` are those it wrote, by the path that they belong to."""

    def __init__(self, random: Random) -> None:
        self.comments: dict[tuple[str, ...], list[str]] = {}
        self._random = random
        self._lines: list[str] = []

    def text(self, table: Table) -> str:
        """Return the text of a table."""
        heads = {key: value for key, value in table.items() if not isinstance(value, dict | list)}
        self._pairs(heads, ())
        blocks: list[tuple[str, Any]] = []
        for key, value in table.items():
            if isinstance(value, dict):
                blocks.append((key, value))
            elif isinstance(value, list):
                blocks += [(key, one) for one in value]
        if not table["sync"]:
            self._line("sync = []", ("sync",))
        self._random.shuffle(blocks)
        order = {id(one): n for n, one in enumerate(table["sync"])}
        syncs = iter(sorted((b for b in blocks if b[0] == "sync"), key=lambda b: order[id(b[1])]))
        for key, value in blocks:
            self._section(*(next(syncs) if key == "sync" else (key, value)))
        newline = self._random.choice(["\n", "\n", "\r\n"])
        end = self._random.choice([newline, newline, ""])
        return self._random.choice(["", "", "\ufeff"]) + newline.join(self._lines) + end

    def _section(self, key: str, table: Table) -> None:
        path = (key, table["name"]) if "name" in table else (key,)
        self._line("", path, may_say=True)
        self._line(f"[[{key}]]" if "name" in table else f"[{key}]", path)
        sections = []
        pairs: Table = {}
        for name, value in table.items():
            if isinstance(value, dict) and value and self._random.random() < 0.6:
                sections.append((name, value))
            else:
                pairs[name] = value
        self._pairs(pairs, path)
        for name, value in sections:
            self._line(f"[{key}.{self._key(name)}]", (*path, name))
            self._pairs(value, (*path, name))

    def _pairs(self, table: Table, path: tuple[str, ...]) -> None:
        for key, value in table.items():
            here = (*path, key)
            if isinstance(value, dict) and value and self._random.random() < 0.3:
                for inner, one in value.items():
                    dotted = f"{self._key(key)}.{self._key(inner)}"
                    self._line(f"{dotted} = {self._value(one, (*here, inner))}", (*here, inner))
            elif self._random.random() < 0.1:
                self._line(f"{self._key(key)}\t=   {self._value(value, here)}", here)
            else:
                self._line(f"{self._key(key)} = {self._value(value, here)}", here)

    def _line(self, line: str, path: tuple[str, ...], *, may_say: bool = True) -> None:
        if self._random.random() < 0.2:
            self._lines.append(self._random.choice(["", "  "]) + self._comment(path))
        if may_say and line and self._random.random() < 0.3:
            line += f" {self._comment(path)}"
        self._lines.append(line)

    def _comment(self, path: tuple[str, ...]) -> str:
        said = self.comments.setdefault(path, [])
        number = sum(map(len, self.comments.values()))
        said.append(f"# comment {number} 'of' \"{'.'.join(path)}\" = [")
        return said[-1]

    def _key(self, key: str) -> str:
        plain = key.replace("_", "").isalnum() and key.isascii()
        return key if plain and self._random.random() < 0.9 else json.dumps(key)

    def _value(self, value: Any, path: tuple[str, ...]) -> str:
        if isinstance(value, dict):
            pairs = (f"{self._key(k)} = {self._flat(v)}" for k, v in value.items())
            return f"{{ {', '.join(pairs)} }}" if value else "{}"
        if isinstance(value, list) and value and self._random.random() < 0.5:
            lines = ["["]
            for one in value:
                said = f" {self._comment(path)}" if self._random.random() < 0.3 else ""
                lines.append(f"  {self._flat(one)},{said}")
            return "\n".join([*lines, "]"])
        return self._flat(value)

    def _flat(self, value: Any) -> str:
        """Return a value in one line."""
        if isinstance(value, dict):
            pairs = (f"{self._key(k)} = {self._flat(v)}" for k, v in value.items())
            return f"{{{', '.join(pairs)}}}"
        if isinstance(value, list):
            return f"[{', '.join(map(self._flat, value))}]"
        if isinstance(value, str):
            is_plain = value.isprintable() and "'" not in value
            spelled = json.dumps(value, ensure_ascii=self._random.random() < 0.5)
            if not is_plain:
                return spelled
            return self._random.choice([spelled, spelled, f"'{value}'", f"'''{value}'''"])
        return json.dumps(value)
