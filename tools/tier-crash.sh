#!/usr/bin/env bash
# What the tier `crash` needs: strace, which kills at a system call, and setsid for process groups of the tests' own.
set -euo pipefail
command -v setsid >/dev/null || { echo "setsid of util-linux is missing"; exit 77; }
exec bash "$(dirname "${BASH_SOURCE[0]}")/tier-faults.sh"
