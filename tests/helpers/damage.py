"""Damaged checkpoints: each kind of damage that a file can have, by name, always the same."""

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]
Table = dict[str, Any]


def split_weights(file: Path) -> tuple[Table, bytes]:
    """The header of a .safetensors file, and the bytes behind it."""
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def join_weights(file: Path, header: Table | str | bytes, data: bytes) -> None:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def _header(change: Callable[[Table], object]) -> Damage:
    """Change the header; what `change` returns takes its place, if it is not None."""

    def damage(file: Path) -> None:
        header, data = split_weights(file)
        changed = change(header)
        join_weights(file, header if changed is None else changed, data)  # type: ignore[arg-type]

    return damage


def _entry(field: str, value: object, number: int = 0) -> Damage:
    def change(header: Table) -> None:
        names = [name for name in header if name != "__metadata__"]
        entry = header[names[number % len(names)]]
        if value is None:
            del entry[field]
        else:
            entry[field] = value

    return _header(change)


def _length(value: int) -> Damage:
    def damage(file: Path) -> None:
        file.write_bytes(struct.pack("<Q", value % 2**64) + file.read_bytes()[8:])

    return damage


def _without(number: int) -> Damage:
    """One tensor less; the file is whole otherwise."""

    def damage(file: Path) -> None:
        header, data = split_weights(file)
        names = sorted(n for n in header if n != "__metadata__")
        rewrite(file, header, data, leave_out=names[number % len(names)])

    return damage


def rewrite(
    file: Path,
    header: Table,
    data: bytes,
    leave_out: str = "",
    more: tuple[tuple[str, str, list[int], bytes], ...] = (),
) -> None:
    """A valid file of the same tensors, without one, or with more (name, dtype, shape, bytes)."""
    table: Table = {}
    pieces: list[bytes] = []
    tensors = [
        (name, entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name not in (leave_out, "__metadata__")
    ]
    for name, dtype, shape, content in (*tensors, *more):
        at = sum(map(len, pieces))
        offsets = [at, at + len(content)]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        pieces.append(content)
    if "__metadata__" in header:
        table["__metadata__"] = header["__metadata__"]
    join_weights(file, table, b"".join(pieces))


def _extra(name: str, dtype: str, shape: list[int], content: bytes) -> Damage:
    def damage(file: Path) -> None:
        header, data = split_weights(file)
        rewrite(file, header, data, more=((name, dtype, shape, content),))

    return damage


def _reshaped(shape: Callable[[list[int]], list[int]], number: int) -> Damage:
    """Another shape of as many values."""

    def change(header: Table) -> None:
        names = sorted(n for n in header if n != "__metadata__")
        entry = header[names[number % len(names)]]
        entry["shape"] = shape(entry["shape"])

    return _header(change)


def _filled(pattern: bytes) -> Damage:
    """All numbers the same: NaN or infinite."""

    def damage(file: Path) -> None:
        header, data = split_weights(file)
        join_weights(file, header, (pattern * (len(data) // len(pattern) + 1))[: len(data)])

    return damage


def _garbage(seed: int) -> Damage:
    """A few bytes of the header are others."""

    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        end = 8 + struct.unpack("<Q", data[:8])[0]
        chance = random.Random(seed)
        for _ in range(1 + seed % 4):
            data[chance.randrange(8, end)] = chance.randrange(256)
        file.write_bytes(data)

    return damage


def _cut(length: int) -> Damage:
    return lambda file: file.write_bytes(file.read_bytes()[:length])


def _replaced(content: str | bytes) -> Damage:
    raw = content.encode() if isinstance(content, str) else content
    return lambda file: file.write_bytes(raw)


def _instead(make: Callable[[Path], object]) -> Damage:
    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


def _sparse(file: Path) -> None:
    """A terabyte that takes no room."""
    with file.open("wb") as opened:
        opened.truncate(2**40)


# Of any file
IN_PLACE: dict[str, Damage] = {
    "missing": lambda file: file.unlink(),
    "empty": _replaced(b""),
    "a folder": _instead(lambda file: file.mkdir()),
    "a pipe": _instead(os.mkfifo),
    "a device": _instead(lambda file: file.symlink_to("/dev/zero")),
    "a loop": _instead(lambda file: file.symlink_to(file)),
    "a broken link": _instead(lambda file: file.symlink_to("/nowhere/at/all")),
    "of the kernel": _instead(lambda file: file.symlink_to("/proc/self/environ")),
    "a terabyte": _sparse,
}

HEADERS: dict[str, Damage] = {
    "length 0": _length(0),
    "length 2**63": _length(2**63),
    "length -1": _length(-1),
    "length 99 MB": _length(99_000_000),
    "length one less": lambda f: _length(struct.unpack("<Q", f.read_bytes()[:8])[0] - 1)(f),
    "length beyond the end": lambda f: _length(f.stat().st_size)(f),
    "seven bytes": _cut(7),
    "nine bytes": _cut(9),
    "cut in the header": _cut(200),
    "cut in the data": lambda f: _cut(f.stat().st_size - 5)(f),
    "too long": lambda f: f.write_bytes(f.read_bytes() + bytes(9)),
    "not JSON": _header(lambda _: "weights"),
    "not UTF-8": _header(lambda _: b"\xff\xfe{}"),
    "a list": _header(lambda _: "[]"),
    "a number": _header(lambda _: "7"),
    "no tensor": _header(lambda _: "{}"),
    "deep": _header(lambda _: '{"a":' + "[" * 200_000),
    "duplicate": _header(lambda h: json.dumps(h)[:-1] + ", " + json.dumps(h)[1:]),
    "NaN": _header(lambda h: json.dumps(h)[:-1] + ', "a": NaN}'),
    "tensor is a list": _header(lambda h: h | {"a": []}),
    "tensor is null": _header(lambda h: h | {"a": None}),
    "no dtype": _entry("dtype", None),
    "no shape": _entry("shape", None),
    "no offsets": _entry("data_offsets", None),
    "dtype 7": _entry("dtype", 7),
    "dtype of nobody": _entry("dtype", "F99"),
    "dtype list": _entry("dtype", ["F32"]),
    "dtype I64": _entry("dtype", "I64"),
    "dtype F4": _entry("dtype", "F4"),
    "shape text": _entry("shape", "48x48"),
    "shape null list": _entry("shape", [None]),
    "shape float": _entry("shape", [1.5, 2]),
    "shape bool": _entry("shape", [True, 2]),
    "shape nested": _entry("shape", [[48]]),
    "shape 0": _entry("shape", [0]),
    "shape -1": _entry("shape", [-1, -48]),
    "shape 2**62": _entry("shape", [2**62, 4]),
    "shape 10**30": _entry("shape", [10**30]),
    "shape of 99 sides": _entry("shape", [1] * 99),
    "offsets one": _entry("data_offsets", [0]),
    "offsets three": _entry("data_offsets", [0, 4, 8]),
    "offsets text": _entry("data_offsets", ["0", "4"]),
    "offsets -4": _entry("data_offsets", [-4, 0]),
    "offsets backwards": _entry("data_offsets", [96, 0]),
    "offsets 2**62": _entry("data_offsets", [0, 2**62]),
    "offsets 10**30": _entry("data_offsets", [0, 10**30]),
    "offsets overlap": _entry("data_offsets", [0, 192], 3),
    "offsets float": _entry("data_offsets", [0.0, 4.0]),
    "metadata list": _header(lambda h: h | {"__metadata__": []}),
    "metadata number": _header(lambda h: h | {"__metadata__": {"a": 7}}),
    "metadata nested": _header(lambda h: h | {"__metadata__": {"a": {"b": "c"}}}),
    "name of NUL": _extra("a\0b", "F32", [1], bytes(4)),
    "name of a surrogate": _header(lambda h: json.dumps(h).replace('{"', '{"\\ud800', 1)),
    "name of a megabyte": _extra("a" * 2**20, "F32", [1], bytes(4)),
    "17 MB of metadata": _header(lambda h: h | {"__metadata__": {"a": "b" * 17_000_000}}),
    "17 MB of lists": _header(lambda h: json.dumps(h)[:-1] + ',"a":[' + "[]," * 5_600_000 + "0]}"),
    "400 digits": _header(lambda h: json.dumps(h).replace("[", "[" + "9" * 400 + ",", 1)),
    "5,000 digits": _header(lambda h: json.dumps(h).replace("[", "[" + "9" * 5000 + ",", 1)),
    "no tensor but empty": lambda f: join_weights(
        f, {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, b""
    ),
    **{f"bytes {seed}": _garbage(seed) for seed in range(12)},
}  # fmt: skip

# Of files that are whole, and not what the model needs
WEIGHTS: dict[str, Damage] = {
    **{f"without the tensor {i}": _without(i) for i in (0, 5, 11)},
    "an extra tensor": _extra("extra.weight", "F32", [2, 2], bytes(16)),
    "an extra list of blocks": _extra("transformer_blocks.99.weight", "F32", [1], bytes(4)),
    "flat": _reshaped(lambda s: [_product(s)], 4),
    "turned": _reshaped(lambda s: s[::-1], 2),
    "a side more": _reshaped(lambda s: [1, *s], 7),
    "NaN everywhere": _filled(b"\x00\x00\xc0\x7f"),
    "infinite": _filled(b"\x00\x00\x80\x7f"),
    "huge": _filled(b"\xff\xff\x7f\x7f"),
}

CONFIGS: dict[str, Damage] = {
    "not JSON": _replaced("config"),
    "not UTF-8": _replaced(b"\xff\xfe\x00{}"),
    "UTF-8 with a mark": lambda f: f.write_bytes(b"\xef\xbb\xbf" + f.read_bytes()),
    "cut": lambda f: _cut(f.stat().st_size // 2)(f),
    "a list": _replaced("[]"),
    "null": _replaced("null"),
    "no keys": _replaced("{}"),
    "deep": _replaced('{"a":' + "[" * 200_000),
    "digits": _replaced('{"a":' + "9" * 5000 + "}"),
    "huge": lambda f: f.write_text('{"a": "' + "b" * 80_000_000 + '"}'),
}  # fmt: skip


def _product(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


VALUES = (
    None, "text", "", [], {}, [None], -1, 0, 1.5, 7, 10**9, 10**30, 1e308, True, float("nan"),
    float("inf"), [1] * 9, {"a": 1}, "../../etc/passwd",
)  # fmt: skip


def wrong_values(file: Path) -> Iterator[tuple[str, Damage]]:
    """Each key of a JSON object with each wrong value."""
    table: Table = json.loads(file.read_text())
    for key in table:
        for value in VALUES:
            if value != table[key]:
                yield f"{key} = {str(value)[:20]}", _set(key, value)


def _set(key: str, value: object) -> Damage:
    def damage(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return damage
