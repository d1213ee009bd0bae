"""Inputs nobody would write on purpose, made from good ones.

In: a good file and a random number generator. Out: the bytes of a bad one. `damage` knows nothing of the format, `vary`
keeps JSON well-formed and says something else; the rest puts either where a reader of that format will meet it.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import io
import json
import random
from typing import Any

PIECES = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud800", b"\\u0000", b"\n", b"\r", b"\t"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"4294967296", b"1" * 400),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"\x1b[2J", b"\xe2\x80\xa8"),
    *(b"[" * 300, b'{"a":' * 100, b"[" * 20_000, b"../../etc/passwd", b"${HOME}", b"{{ 1/0 }}"),
    *(b"<s>", b"</s>", b"PAR1", b"!!python/object:os.system", b"&a [*a, *a]", b"- - - ", b"? "),
)
STATEMENTS = (
    *(
        b"{% for a in range(10**9) %}x{% endfor %}",
        b"{{ 'x' * 10**10 }}",
        b"{{ '%999999999d' % 1 }}",
    ),
    *(
        b"{{ messages[0].__class__ }}",
        b"{{ 1 / 0 }}",
        b"{% include '/etc/passwd' %}",
        b"{% endif %}",
    ),
    *(
        b"{{ nothing.at.all }}",
        b"{{ messages | tojson }}",
        b"{{ strftime_now('%Y') }}",
        b"{% set a",
    ),
    *(b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", b"{{ messages.append(1) }}", b"\xff"),
    *(
        b"{% if message.content == 'one' %}",
        b"{{ '\x00' }}",
        b"{#",
        b"{% raw %}",
        b"{{ cycler() }}",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 10**400, -(2**63), 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", " ", "a", "\x00", "\ud800", "\u202e\x1b[31m", "x" * 70_000),
    *("../../etc/passwd", "/dev/zero", "a/b", ".", "{{ x }}", "%s", "auto", "float32", "1", "-1"),
    *([], {}, [[]], [None], {"": {}}, {"a": 1}, [1] * 300, [["a", "b"]], {"type": "BPE"}),
)
# Values of columns, of every type that a table may have.
COLUMNS: tuple[list[Any], ...] = (
    *(["a\n", "b\n", None], [1, 2, None], [0.5, float("nan"), None], [b"\xff", b"", None]),
    *([["a"], [], None], [{"role": "user", "content": "a"}], [True, None], [None], [-1], [2**62]),
    *([[{"role": "user", "content": "a"}]], [decimal.Decimal("1.5")], ["x" * 70_000], [""]),
    *([datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)], [datetime.timedelta(1)]),
)


def damage(rng: random.Random, good: bytes, *, edits: int = 4) -> bytes:
    """Change, insert, remove or double some bytes, or cut the end off."""
    bad = bytearray(good)
    for _ in range(rng.randint(1, edits)):
        start = rng.randint(0, len(bad))
        end = min(len(bad), start + rng.randint(1, 40))
        match rng.randrange(12):
            case 0:
                del bad[start:]
            case 1 | 2:
                del bad[start:end]
            case 3 | 4:
                bad[start:start] = bad[start:end]
            case 5 | 6 | 7 if start < len(bad):
                bad[start] ^= 1 << rng.randrange(8)
            case _:
                bad[start : rng.choice([start, end])] = rng.choice(PIECES)
    return bytes(bad)


def vary(rng: random.Random, good: Any) -> Any:  # noqa: ANN401 - any JSON
    """Say something else somewhere: another value, a value gone, doubled, renamed or moved."""
    root = [copy.deepcopy(good)]
    for _ in range(rng.randint(1, 2)):
        holder, key = rng.choice(list(_places(root)))
        match rng.randrange(6):
            case 0 if holder is not root:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["", "a", "\x00", str(key) + "x"])] = holder.pop(key)
            case 2:
                other, place = rng.choice(list(_places(root)))
                holder[key] = copy.deepcopy(other[place])
            case 3:
                holder[key] = [copy.deepcopy(holder[key])] * rng.choice([1, 2, 300])
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return root[0]


def _places(holder: Any) -> Any:  # noqa: ANN401
    """Give every (container, key) below a container, no more than some of a long one."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys[:40]:
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def bad_json(rng: random.Random, good: bytes) -> bytes:
    """Spoil a file of one JSON value."""
    if rng.random() < 0.3:
        return damage(rng, good)
    return _dump(vary(rng, json.loads(good)))


def bad_lines(rng: random.Random, good: bytes) -> bytes:
    """Spoil some lines of JSON Lines."""
    lines = good.splitlines()
    for _ in range(rng.randint(1, 3)):
        number = rng.randrange(len(lines))
        if rng.random() < 0.5:
            lines[number] = damage(rng, lines[number])
        else:
            lines[number] = bad_json(rng, good.splitlines()[number])
    whole = b"\n".join(lines)
    return damage(rng, whole, edits=1) if rng.random() < 0.2 else whole


def bad_yaml(rng: random.Random, good: bytes) -> bytes:
    """Spoil a YAML file."""
    import yaml

    if rng.random() < 0.5:
        return damage(rng, good, edits=2)
    return yaml.safe_dump(vary(rng, yaml.safe_load(good))).encode(errors="surrogatepass")


def bad_template(rng: random.Random, good: bytes) -> bytes:
    """Spoil a chat template: as a text, and by statements that fail, flood or never end."""
    if rng.random() < 0.4:
        return damage(rng, good)
    place = rng.randint(0, len(good))
    return good[:place] + rng.choice(STATEMENTS) + good[place:]


def bad_safetensors(rng: random.Random, good: bytes) -> bytes:
    """Spoil a safetensors file: mostly its header, sometimes all of it."""
    length = int.from_bytes(good[:8], "little")
    header, weights = good[8 : 8 + length], good[8 + length :]
    kind = rng.randrange(4)
    if kind == 0:
        return damage(rng, good)
    if kind == 1:
        length = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])
        return length.to_bytes(8, "little") + good[8:]
    header = damage(rng, header) if kind == 2 else _dump(vary(rng, json.loads(header)))
    return len(header).to_bytes(8, "little") + header + weights


def bad_parquet(rng: random.Random, good: bytes) -> bytes:
    """Spoil a Parquet file: bytes anywhere, or well-formed with other columns than expected."""
    if rng.random() < 0.3:
        return _other_columns(rng, good)
    if rng.random() < 0.5:
        return damage(rng, good)
    # Its metadata is at the end, behind a length that is to stay right.
    length = int.from_bytes(good[-8:-4], "little")
    start = len(good) - 8 - length
    footer = damage(rng, good[start:-8], edits=2)
    return good[:start] + footer + len(footer).to_bytes(4, "little") + good[-4:]


def _other_columns(rng: random.Random, good: bytes) -> bytes:
    """Write a table again with other values in some columns, without some, or without rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(good))
    for _ in range(rng.randint(1, 2)):
        number = rng.randrange(table.num_columns)
        values = rng.choice(COLUMNS)
        column = pa.array([values[row % len(values)] for row in range(table.num_rows)])
        match rng.randrange(8):
            case 0:
                table = table.remove_column(number)
            case 1:
                table = table.append_column(table.column_names[number], column)
            case 2:
                table = table.slice(0, rng.randint(0, 1))
            case _:
                table = table.set_column(number, table.column_names[number], column)
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _dump(value: Any) -> bytes:  # noqa: ANN401
    return json.dumps(value, ensure_ascii="\\ud800" in json.dumps(value)).encode()
