#!/usr/bin/env bash
# Runs the default tests, or a tier: test.sh [NAME|all]. Goes on after a failure and ends with "N passed, N failed, N skipped".
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PATH="$root/.tools/node_modules/.bin:$root/node_modules/.bin:$PATH"
export PYTHONPATH="$root/.tools/python:$root/python/weightline${PYTHONPATH:+:$PYTHONPATH}"
export NODE_OPTIONS="--disable-warning=ExperimentalWarning"
mkdir -p .tap
passed=0 failed=0 skipped=0
tier_file_seconds=840

# One check that is no tap file.
check() {
  local name=$1
  shift
  echo "== $name"
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "== failed: $name"; fi
}

# tap over files; the whole output stays in .tap/NAME.tap.
run_tap() {
  local name=$1 jobs=$2
  shift 2
  echo "== tests: $name"
  tap --reporter=tap --jobs="$jobs" "$@" >".tap/$name.tap" 2>".tap/$name.log"
  local code=$?
  grep -aE '^(ok|not ok) ' ".tap/$name.tap"
  local totals
  totals=$(grep -aE '^# \{ total: ' ".tap/$name.tap" | tail -n 1)
  local p f s
  p=$(sed -nE 's/.*pass: ([0-9]+).*/\1/p' <<<"$totals")
  f=$(sed -nE 's/.*fail: ([0-9]+).*/\1/p' <<<"$totals")
  s=$(sed -nE 's/.*skip: ([0-9]+).*/\1/p' <<<"$totals")
  passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0})) skipped=$((skipped + ${s:-0}))
  # A file whose tests come after its end is told there alone, and counted as passed.
  if grep -aqE 'after automatic end|after parent test ends' ".tap/$name.log"; then
    echo "== tests of a file came after its end: see .tap/$name.log"
    failed=$((failed + 1))
  fi
  if [ $code -ne 0 ] || [ "${f:-0}" != 0 ]; then
    [ "${f:-0}" != 0 ] || failed=$((failed + 1))
    echo "== failures of $name (all of it in .tap/$name.tap)"
    grep -anE -A 24 '^ *not ok ' ".tap/$name.tap" | head -n 200
    tail -n 30 ".tap/$name.log"
  fi
}

default_tier() {
  check "protocol files: lint" bash -c 'cd packages/proto && buf lint'
  check "types" tsc -b
  check "lint and format" biome check --error-on-warnings .
  check "Python types" python3 -m mypy --strict --no-error-summary --cache-dir .tools/mypy python/weightline/weightline
  run_tap default 2 packages/*/test/*.test.ts packages/*/test/*/*.test.ts test/*.test.ts test/repository/*.test.ts
}

tier() {
  local name=$1 hook=tools/tier-$1.sh
  [ -d "test/tiers/$name" ] || { echo "test: tier $name is not known; there are: $(ls test/tiers | tr '\n' ' ')" >&2; exit 2; }
  if [ -f "$hook" ]; then
    local reason code
    reason=$(bash "$hook" 2>&1)
    code=$?
    # 77: this machine cannot run it; that is told, and counts as nothing. Anything else is a failure.
    if [ $code = 77 ]; then
      echo "not run: $name: $(tail -n 1 <<<"$reason")"
      return 0
    elif [ $code != 0 ]; then
      echo "$reason"
      failed=$((failed + 1))
      return 0
    fi
  fi
  # A tier's file may take long: fuzzing, kills at every step. The time that the whole tier has is its caller's to set.
  run_tap "$name" 1 --timeout="$tier_file_seconds" test/tiers/"$name"/*.test.ts
}

case ${1:-default} in
  default) default_tier ;;
  all) default_tier; for folder in test/tiers/*/; do tier "$(basename "$folder")"; done ;;
  *) tier "$1" ;;
esac
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
