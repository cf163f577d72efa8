"""Makes the layout format's test vectors, from the design page alone: an implementation of its own, sharing no code.

usage: generate.py FOLDER     writes NAME.bin and NAME.json for each vector
"""

import json
import struct
import sys
from pathlib import Path


def chunk_bytes(total):
    size = 64 << 10
    while size < 1 << 20 and size * 2 <= total // 16384:
        size *= 2
    return size


def quote(text):
    out = '"'
    for c in text:
        if c in '"\\':
            out += "\\" + c
        elif c in "\b\t\n\f\r":
            out += {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}[c]
        elif ord(c) < 0x20:
            out += "\\u%04x" % ord(c)
        else:
            out += c
    return out + '"'


def padded(data, fill=b"\0"):
    return data + fill * (-len(data) % 8)


def encode(kind, algorithm, segments, items):
    """segments: [(bytes, path)]; items: [(name, dtype, shape, segment, offset, bytes, alias name or None)]."""
    items = sorted(items, key=lambda item: item[0].encode())
    index = {item[0]: i for i, item in enumerate(items)}
    dtypes = sorted({item[1] for item in items}, key=str.encode)
    dims = [d for item in items for d in item[2]]
    segment_texts = [
        '{"bytes":%d%s}' % (size, ',"path":' + quote(path) if kind == "files" else "") for size, path in segments
    ]
    header = (
        '{"kind":"%s","algorithm":"%s","chunk_bytes":%d,"items":%d,"dims":%d,"dtypes":[%s],"segments":[%s]}'
        % (
            kind,
            algorithm,
            chunk_bytes(sum(size for size, _ in segments)),
            len(items),
            len(dims),
            ",".join(quote(d) for d in dtypes),
            ",".join(segment_texts),
        )
    ).encode()
    header = padded(header, b" ")
    names = [item[0].encode() for item in items]
    ends, at = [], 0
    for name in names:
        at += len(name)
        ends.append(at)
    n = len(items)
    out = b"WLLAYOUT" + struct.pack("<II", 1, len(header)) + header
    out += padded(struct.pack("<%dQ" % n, *[item[4] for item in items]))
    out += padded(struct.pack("<%dQ" % n, *[item[5] for item in items]))
    out += padded(struct.pack("<%dQ" % len(dims), *dims))
    out += padded(struct.pack("<%dI" % n, *ends))
    out += padded(struct.pack("<%dI" % n, *[item[3] for item in items]))
    out += padded(struct.pack("<%dI" % n, *[index[item[6]] if item[6] else i for i, item in enumerate(items)]))
    out += padded(bytes(dtypes.index(item[1]) for item in items))
    out += padded(bytes(len(item[2]) for item in items))
    out += padded(b"".join(names))
    return out


VECTORS = {
    "empty-folder-file": ("files", "xxh3-128", [(0, "empty.txt")], []),
    "one-tensor": ("files", "xxh3-128", [(2, "config.json"), (1096, "model.safetensors")], [("w", "F32", (16, 16), 1, 72, 1024, None)]),
    "names-that-bite": (
        "files",
        "xxh3-128",
        [(200, "m.safetensors")],
        [
            (name, "U8", (1,), 0, 100 + i, 1, None)
            for i, name in enumerate(["__proto__", "constructor", "10", "2", "a/b", "", "\u00e9", "e\u0301", "\U0001f600", "\uff5e"])
        ],
    ),
    "zero-size-and-scalars": (
        "files",
        "sha-256",
        [(90, "a.safetensors"), (0, "b.txt"), (50, "dir/c d.safetensors")],
        [("none", "F8_E4M3", (0,), 0, 0, 0, None), ("scalar", "F64", (), 2, 40, 8, None), ("vector", "F16", (2,), 0, 86, 4, None)],
    ),
    "packed-and-unknown": (
        "files",
        "xxh3-128",
        [(64, "p.safetensors")],
        [("f4", "F4", (2, 8), 0, 40, 8, None), ("new", "F5_NEW", (3, 3), 0, 48, 6, None), ("scale", "F8_E8M0", (3,), 0, 54, 3, None)],
    ),
    "tensors-with-aliases": (
        "tensors",
        "xxh3-128",
        [(1536, ""), (4096, "")],
        [
            ("lm_head", "BF16", (16, 32), 0, 0, 1024, None),
            ("wte", "BF16", (16, 32), 0, 0, 1024, "lm_head"),
            ("norm", "F32", (128,), 0, 1024, 512, None),
            ("big", "F32", (1024,), 1, 0, 4096, None),
        ],
    ),
    "large-offsets": (
        "files",
        "xxh3-128",
        [(2**41 + 12345, "huge.safetensors")],
        [("head", "U8", (2**40,), 0, 1000, 2**40, None), ("tail", "U8", (12345,), 0, 2**41, 12345, None)],
    ),
    "control-characters": ("files", "xxh3-128", [(8, 'we"ird\\\u0001\u007f.bin')], [('a"\n\u0002', "U8", (8,), 0, 0, 8, None)]),
    "rank-sixteen": ("files", "xxh3-128", [(1, "r.safetensors")], [("r", "U8", (1,) * 16, 0, 0, 1, None)]),
}


def main():
    folder = Path(sys.argv[1])
    for name, (kind, algorithm, segments, items) in VECTORS.items():
        (folder / f"{name}.bin").write_bytes(encode(kind, algorithm, segments, items))
        ordered = sorted(items, key=lambda item: item[0].encode())
        described = {
            "kind": kind,
            "algorithm": algorithm,
            "chunk_bytes": chunk_bytes(sum(size for size, _ in segments)),
            "segments": [{"bytes": str(size), "path": path} for size, path in segments],
            "items": [
                {"name": i[0], "dtype": i[1], "shape": [str(d) for d in i[2]], "segment": i[3], "offset": str(i[4]), "bytes": str(i[5])}
                for i in ordered
            ],
        }
        (folder / f"{name}.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
