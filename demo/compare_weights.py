"""Compares every tensor that an agent attaches with the file on disk, byte by byte, by an independent reader of the file.

usage: compare_weights.py MODEL_NAME PATH [HOLD_SECONDS]
prints one JSON object: {"tensors", "bytes", "copied", "outcome", "digest"}; exit code 1 at the first difference.
"""

import json
import struct
import sys
import time
from pathlib import Path

import weightline


def tensors_of(path: Path):
    """Name, dtype, shape and bytes of each tensor of a safetensors file, by its header alone."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                file.seek(8 + size + begin)
                yield name, entry["dtype"], tuple(entry["shape"]), file.read(end - begin)


def main() -> int:
    model, path = sys.argv[1], Path(sys.argv[2])
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    agent = weightline.connect()
    with agent.acquire(model_name=model, timeout=120) as held:
        seen = total = 0
        for file in files:
            for name, dtype, shape, data in tensors_of(file):
                tensor = held[name]
                if (tensor.dtype, tensor.shape) != (dtype, shape) or tensor.data != data:
                    print(f"tensor {name} differs from {file.relative_to(folder)}", file=sys.stderr)
                    return 1
                seen += 1
                total += len(data)
        if seen != len(held.names):
            print(f"{len(held.names)} tensors are held, {seen} are on disk", file=sys.stderr)
            return 1
        print(json.dumps({"tensors": seen, "bytes": total, "copied": held.copied_bytes, "outcome": held.outcome, "digest": held.object_digest}), flush=True)
        if len(sys.argv) > 3:
            time.sleep(float(sys.argv[3]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
