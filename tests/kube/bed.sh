#!/usr/bin/env bash
# Every case of the quick bed, inside of it, with few rounds.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bad=0
for script in invalid.py lifecycle.py "failover.py --rounds 5" identity.py operator_down.py crossing.py; do
  echo "--- $script"
  # shellcheck disable=SC2086
  set -- $script
  python3 "$here/$@" || bad=1
done
exit $bad
