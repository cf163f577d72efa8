#!/usr/bin/env bash
# What the tier `fuzz` needs: the fuzz targets of packages/rdma-native/fuzz, built with the address and undefined-behaviour sanitizers.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for library in libasan.so libubsan.so; do
  found=$(c++ -print-file-name=$library)
  [ -e "$found" ] || { echo "the compiler has no $library"; exit 77; }
done
export PATH="$root/.tools/node_modules/.bin:$root/.tools/python/bin:$PATH" PYTHONPATH="$root/.tools/python"
cd "$root/packages/rdma-native"
want=$(cat $(find src/cpp fuzz CMakeLists.txt -type f -not -path 'fuzz/corpus/*' | sort) | sha256sum)
if [ "$(cat build-fuzz/stamp 2>/dev/null)" != "$want" ]; then
  echo "mx: setup: fuzz targets with sanitizers (two minutes)" >&2
  unset npm_config_nodedir NPM_CONFIG_NODEDIR
  CMAKE_BUILD_PARALLEL_LEVEL=2 pnpm run build:fuzz >"$root/.tools/fuzz-build.log" 2>&1 || { tail -n 40 "$root/.tools/fuzz-build.log" >&2; echo "the build of the fuzz targets failed"; exit 1; }
  echo "$want" >build-fuzz/stamp
fi
