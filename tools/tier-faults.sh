#!/usr/bin/env bash
# What the tier `faults` needs: strace, which injects errors into system calls (exits with a reason where it cannot be had), and
# libfaketime for clocks that jump (that test is skipped without it).
set -euo pipefail
if ! command -v strace >/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "strace is missing, and it cannot be installed here"; exit 77; }
  apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends strace >/dev/null
fi
strace -o /dev/null true 2>/dev/null || { echo "strace may not trace here (ptrace is not permitted)"; exit 77; }
if ! ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libfaketime; } >/dev/null 2>&1 || true
fi
