"""Canonical JSON and mx_source_id of identities, written from contract.md alone, to hold the TypeScript against.

Reads one identity a line: JSON of field name to value, extra_parameters as a list of [key, value]. Writes [canonical, id] a line.
The first line written is the version of Unicode that this Python lowercases by.
"""

import hashlib
import json
import sys
import unicodedata

STRINGS = ("dtype", "model_name", "mx_version", "quantization", "revision")
NUMBERS = (
    "backend_framework",
    "expert_parallel_size",
    "mx_source_type",
    "pipeline_parallel_size",
    "tensor_parallel_size",
)
OPTIONAL = (
    "backend_framework_version",
    "compile_config_digest",
    "cuda_version",
    "gpu_arch",
    "torch_version",
    "triton_version",
)


def utf8(text: str) -> bytes:
    return text.encode("utf-8")


def quoted(text: str) -> str:
    named = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
    return '"' + "".join(named.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 0x20 else c) for c in text) + '"'


def json_object(entries: dict[str, str]) -> str:
    """Values are JSON already."""
    return "{" + ",".join(f"{quoted(key)}:{entries[key]}" for key in sorted(entries, key=utf8)) + "}"


def canonical(identity: dict) -> str:
    extra: dict[str, str] = {}
    for key, value in sorted(identity.get("extra_parameters", []), key=lambda entry: utf8(entry[0])):
        extra.setdefault(key.lower(), quoted(value.lower()))
    members = {name: str(identity.get(name, 0)) for name in NUMBERS}
    members |= {name: quoted(identity.get(name, "").lower()) for name in STRINGS}
    members |= {name: quoted(identity[name].lower()) for name in OPTIONAL if identity.get(name, "") != ""}
    members["extra_parameters"] = json_object(extra)
    return json_object(members)


def main() -> None:
    print(json.dumps(unicodedata.unidata_version))
    for line in sys.stdin:
        text = canonical(json.loads(line))
        print(json.dumps([text, hashlib.sha256(utf8(text)).hexdigest()[:16]]))


main()
