#!/usr/bin/env bash
# Every case on a node, inside of it or on the cluster that KUBECONFIG names, with few rounds.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bad=0
for script in install.py "failover.py --java --kinds delete,kill --rounds 3" operator_down.py identity.py crossing.py \
  lifecycle.py invalid.py "install.py --remove"; do
  echo "--- $script"
  # shellcheck disable=SC2086
  set -- $script
  python3 "$here/$@" || { bad=1; [ "$script" != install.py ] || exit 1; }
done
exit $bad
