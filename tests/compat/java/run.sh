#!/usr/bin/env bash
# Runs one Java program in the foreground (exec, so the caller's pid is the JVM).
#
#   run.sh namesrv  DIR PORT
#   run.sh broker   DIR PORT NAMESRV [key=value...]            one ASYNC_MASTER
#   run.sh dledger  DIR NODE PORTS PEERPORTS NAMESRV [key=value...]
#        NODE 0..2; PORTS and PEERPORTS are comma lists with one port per node
#   run.sh mqadmin  ARGS...
#   run.sh admin-shell                tab-separated mqadmin commands from standard input
#   run.sh example  CLASS ARGS...     class below org.apache.rocketmq.example
#   run.sh client55 CLASS ARGS...     class of ours (compat.*) on the 5.5.0 client
#   run.sh client49 CLASS ARGS...     the same on the 4.9.8 client
#
# DIR holds store, logs and config of a server. The other programs log below
# $COMPAT_LOGS (default: a folder below $TMPDIR).
# COMPAT_HEAP (512m) and COMPAT_DIRECT (512m, servers) size the JVM;
# COMPAT_JAVA_OPTS is appended; COMPAT_NAMESRV is handed to examples.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
host=${COMPAT_HOST:-127.0.0.1}
heap=${COMPAT_HEAP:-512m}
direct=${COMPAT_DIRECT:-512m}

usage() { sed -n '2,/^set -e/{/^#/p}' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2; exit 2; }

# jvm NAME HOME MAIN ARGS...: user.home moves every log and local offset file.
jvm() {
  local home=$2 classes flags=()
  classes=$("$here/classpaths.sh" "$1")
  shift 2
  mkdir -p "$home"
  flags+=(-Xms"${heap_min:-$heap}" -Xmx"$heap" -XX:MaxDirectMemorySize="$direct" -XX:+UseG1GC -XX:-UsePerfData)
  for p in jdk.internal.ref jdk.internal.misc sun.nio.ch; do
    flags+=("--add-exports=java.base/$p=ALL-UNNAMED" "--add-opens=java.base/$p=ALL-UNNAMED")
  done
  flags+=("--add-opens=java.base/java.nio=ALL-UNNAMED" "--add-opens=java.base/java.lang=ALL-UNNAMED")
  flags+=("-Drmq.logback.configurationFile=$here/logback.xml")
  flags+=("-Duser.home=$home" "-Drocketmq.home.dir=$home" "-Drocketmq.client.logRoot=$home/logs/client")
  # shellcheck disable=SC2086
  exec java "${flags[@]}" ${COMPAT_JAVA_OPTS:-} -cp "$classes" "$@"
}

tool_home() {
  echo "${COMPAT_LOGS:-${TMPDIR:-/tmp}/raftmq-compat-$(id -u)}"
}

settings() { printf '%s\n' "$@"; }

[ $# -ge 1 ] || usage
what=$1
shift
case $what in
  namesrv)
    [ $# -eq 2 ] || usage
    dir=$1 port=$2
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    settings "listenPort=$port" "bindAddress=0.0.0.0" "rocketmqHome=$dir" \
      "kvConfigPath=$dir/kvConfig.json" "configStorePath=$dir/namesrv.properties" >"$dir/namesrv.conf"
    jvm server "$dir" org.apache.rocketmq.namesrv.NamesrvStartup -c "$dir/namesrv.conf"
    ;;
  broker)
    [ $# -ge 3 ] || usage
    dir=$1 port=$2 namesrv=$3
    shift 3
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    settings "brokerClusterName=DefaultCluster" "brokerName=broker-a" "brokerId=0" \
      "brokerIP1=$host" "listenPort=$port" "haListenPort=$((port + 1))" "namesrvAddr=$namesrv" \
      "brokerRole=ASYNC_MASTER" "flushDiskType=ASYNC_FLUSH" \
      "storePathRootDir=$dir/store" "storePathCommitLog=$dir/store/commitlog" "$@" >"$dir/broker.conf"
    jvm server "$dir" org.apache.rocketmq.broker.BrokerStartup -c "$dir/broker.conf"
    ;;
  dledger)
    [ $# -ge 5 ] || usage
    dir=$1 node=$2 namesrv=$5
    IFS=, read -r -a ports <<<"$3"
    IFS=, read -r -a peer_ports <<<"$4"
    shift 5
    peers=
    for i in "${!peer_ports[@]}"; do peers+="${peers:+;}n$i-$host:${peer_ports[$i]}"; done
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    port=${ports[$node]}
    settings "brokerClusterName=RaftCluster" "brokerName=RaftNode00" \
      "brokerIP1=$host" "listenPort=$port" "haListenPort=$((port + 1))" "namesrvAddr=$namesrv" \
      "enableDLegerCommitLog=true" "dLegerGroup=RaftNode00" "dLegerPeers=$peers" "dLegerSelfId=n$node" \
      "storePathRootDir=$dir/store" "storePathCommitLog=$dir/store/commitlog" "$@" >"$dir/broker.conf"
    jvm server "$dir" org.apache.rocketmq.broker.BrokerStartup -c "$dir/broker.conf"
    ;;
  mqadmin)
    heap=${COMPAT_HEAP:-256m} heap_min=32m
    jvm server "$(tool_home)/mqadmin" org.apache.rocketmq.tools.command.MQAdminStartup "$@"
    ;;
  admin-shell)
    heap=${COMPAT_HEAP:-256m} heap_min=32m
    jvm server "$(tool_home)/mqadmin" compat.AdminShell
    ;;
  example)
    [ $# -ge 1 ] || usage
    main=$1 heap_min=64m
    shift
    COMPAT_JAVA_OPTS="${COMPAT_JAVA_OPTS:-} ${COMPAT_NAMESRV:+-Drocketmq.namesrv.addr=$COMPAT_NAMESRV}"
    jvm server "$(tool_home)/example" "org.apache.rocketmq.example.$main" "$@"
    ;;
  client55 | client49)
    [ $# -ge 1 ] || usage
    heap_min=64m
    jvm "$what" "$(tool_home)/$what" "$@"
    ;;
  *) usage ;;
esac
