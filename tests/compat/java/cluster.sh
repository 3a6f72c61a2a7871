#!/usr/bin/env bash
# Starts Java servers in the background, waits until they serve, stops them by pid.
#
#   cluster.sh single  DIR NAMESRVPORT BROKERPORT [key=value...]
#   cluster.sh dledger DIR NAMESRVPORT PORT0,PORT1,PORT2 PEER0,PEER1,PEER2 [key=value...]
#   cluster.sh kill    DIR NAME      SIGKILL one server (NAME is namesrv, broker, n0, n1, n2)
#   cluster.sh restart DIR NAME      start it again with the same arguments
#   cluster.sh stop    DIR           SIGTERM all, SIGKILL after 20 s
#
# A broker port P also takes P-2 and P+1. Each server writes DIR/NAME.pid, DIR/NAME.out
# and its store and logs below DIR/NAME.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
host=${COMPAT_HOST:-127.0.0.1}

usage() { sed -n '2,/^set -e/{/^#/p}' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2; exit 2; }

launch() { # DIR NAME run.sh-arguments...
  local dir=$1 name=$2
  shift 2
  printf '%q ' "$@" >"$dir/$name.args"
  setsid "$here/run.sh" "$@" >>"$dir/$name.out" 2>&1 </dev/null &
  echo $! >"$dir/$name.pid"
}

alive() { kill -0 "$(cat "$1")" 2>/dev/null; }

await() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ $SECONDS -ge $end ]; then
      echo "gave up waiting for $what" >&2
      return 1
    fi
    sleep 0.2
  done
}

port_open() { (exec 3<>"/dev/tcp/$host/$1") 2>/dev/null; }

rows() { # NAMESRV: broker rows that answered with a version
  COMPAT_LOGS=$dir/admin "$here/run.sh" mqadmin clusterList -n "$1" 2>/dev/null | grep -c ' V5_' || true
}

has_rows() { [ "$(rows "$1")" -ge "$2" ]; }

[ $# -ge 2 ] || usage
verb=$1 dir=$2
shift 2
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
"$here/classpaths.sh" >/dev/null
case $verb in
  single)
    [ $# -ge 2 ] || usage
    ns=$1 port=$2
    shift 2
    launch "$dir" namesrv namesrv "$dir/namesrv" "$ns"
    await 30 "name server" port_open "$ns"
    launch "$dir" broker broker "$dir/broker" "$port" "$host:$ns" "$@"
    await 60 "broker" port_open "$port"
    await 60 "broker registration" has_rows "$host:$ns" 1
    ;;
  dledger)
    [ $# -ge 3 ] || usage
    ns=$1 ports=$2 peers=$3
    shift 3
    launch "$dir" namesrv namesrv "$dir/namesrv" "$ns"
    await 30 "name server" port_open "$ns"
    for i in 0 1 2; do launch "$dir" "n$i" dledger "$dir/n$i" "$i" "$ports" "$peers" "$host:$ns" "$@"; done
    await 120 "three registered brokers" has_rows "$host:$ns" 3
    ;;
  kill) kill -9 "$(cat "$dir/$1.pid")" ;;
  restart)
    eval "set -- $1 $(cat "$dir/$1.args")"
    launch "$dir" "$@"
    ;;
  stop)
    for f in "$dir"/*.pid; do [ -f "$f" ] && kill "$(cat "$f")" 2>/dev/null || true; done
    end=$((SECONDS + 20))
    for f in "$dir"/*.pid; do
      [ -f "$f" ] || continue
      while alive "$f" && [ $SECONDS -lt $end ]; do sleep 0.1; done
      kill -9 "$(cat "$f")" 2>/dev/null || true
      rm -f "$f"
    done
    ;;
  *) usage ;;
esac
