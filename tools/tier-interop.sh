#!/usr/bin/env bash
# What the tier `interop` needs: the PyPI package modelexpress, two versions of it, with what its client imports (not PyTorch and CUDA,
# which only its loaders use), and grpcio-reflection. All of it lies in .tools/interop.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
place=$root/.tools/interop
log=$root/.tools/interop.log
versions=(0.7.0 0.5.1)
needs=(grpcio grpcio-reflection huggingface_hub "protobuf>=5.27.2,<7")
want="${versions[*]} ${needs[*]} $(python3 -c 'import sys; print(sys.version_info[:2])')"
[ "$(cat "$place/stamp" 2>/dev/null)" = "$want" ] && exit 0
python3 -m pip --version >/dev/null 2>&1 || { echo "python3 has no pip"; exit 77; }
rm -rf "$place"
mkdir -p "$place"
install() { python3 -m pip install --quiet --timeout 30 --retries 1 --disable-pip-version-check --target "$@" >"$log" 2>&1; }
for version in "${versions[@]}"; do
  install "$place/$version" --no-deps "modelexpress==$version" || { echo "pip cannot install modelexpress $version: $(tail -n 1 "$log")"; exit 77; }
done
install "$place/needs" "${needs[@]}" || { echo "pip cannot install what modelexpress needs: $(tail -n 1 "$log")"; exit 77; }
echo "$want" >"$place/stamp"
