#!/usr/bin/env bash
# What the tier `threads` needs: the threads' program of packages/rdma-native/fuzz, built with the thread sanitizer, and a kernel that it
# runs on.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -e "$(c++ -print-file-name=libtsan.so)" ] || { echo "the compiler has no libtsan.so"; exit 77; }
export PATH="$root/.tools/node_modules/.bin:$root/.tools/python/bin:$PATH" PYTHONPATH="$root/.tools/python"
cd "$root/packages/rdma-native"
want=$(cat $(find src/cpp CMakeLists.txt fuzz/CMakeLists.txt fuzz/threads.cc -type f | sort) | sha256sum)
if [ "$(cat build-threads/stamp 2>/dev/null)" != "$want" ]; then
  echo "mx: setup: the threads' program with the thread sanitizer (a minute)" >&2
  unset npm_config_nodedir NPM_CONFIG_NODEDIR
  CMAKE_BUILD_PARALLEL_LEVEL=2 pnpm run build:threads >"$root/.tools/threads-build.log" 2>&1 || { tail -n 40 "$root/.tools/threads-build.log" >&2; echo "the build of the threads' program failed"; exit 1; }
  echo "$want" >build-threads/stamp
fi
# The sanitizer of GCC 12 knows fewer layouts of memory than some kernels choose from; without randomization there is one that it knows.
said=$(setarch "$(uname -m)" -R build-threads/Release/threads --planted 2>&1) && code=0 || code=$?
[ $code = 66 ] || { echo "the thread sanitizer does not run here: $(head -n 1 <<<"$said")"; exit 77; }
