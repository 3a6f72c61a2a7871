#!/usr/bin/env bash
# Drives the Java 5.5.0 mqadmin against a running server and checks what it prints.
#
#   mqadmin.sh NAMESRV CLUSTER BROKERNAME BROKERADDR
#
# Prints PASS or FAIL for each command and exits with 1 when one failed. BROKERADDR is the master's.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -eq 4 ] || { sed -n '2,/^set -u/{/^#/p}' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2; exit 2; }
namesrv=$1 cluster=$2 broker=$3 addr=$4
topic=admin_$(date +%s)_$$
group=CG_$topic
failed=0
out=

"$here/java/classpaths.sh" >/dev/null || exit 2
coproc SHELL_ { exec "$here/java/run.sh" admin-shell 2>&1; }
shell_pid=$SHELL__PID
exec {to}>&"${SHELL_[1]}" {from}<&"${SHELL_[0]}"
in=${SHELL_[0]} to0=${SHELL_[1]}
exec {in}<&- {to0}>&-
trap 'exec {to}>&-; wait "$shell_pid" 2>/dev/null' EXIT

admin() { # WORDS...: sets $out
  local line words
  words=$(printf '%s\t' "$@" -n "$namesrv")
  printf '%s\n' "${words%$'\t'}" >&"$to"
  out=
  while IFS= read -r -t 60 line <&"$from"; do
    [ "$line" = "--end-of-command--" ] && return
    out+=$line$'\n'
  done
  out+="no answer within 60 s"
}

# check NAME PATTERN WORDS...: the output of the command has a line matching PATTERN and no stack trace.
# Retried for a few seconds: a broker may tell the name server about a change a little later.
check() {
  local name=$1 pattern=$2 begin=$SECONDS
  shift 2
  while true; do
    admin "$@"
    if grep -Eq -- "$pattern" <<<"$out" && ! grep -q '^.at org\.apache' <<<"$out"; then
      echo "PASS $name ($((SECONDS - begin)) s)"
      return 0
    fi
    [ $((SECONDS - begin)) -lt 10 ] || break
    sleep 0.5
  done
  failed=1
  echo "FAIL $name: nothing matches $pattern"
  head -20 <<<"$out" | sed 's/^/     /'
  return 1
}

# once: like check, for commands that must not be repeated.
once() {
  local name=$1 pattern=$2 begin=$SECONDS
  shift 2
  admin "$@"
  if grep -Eq -- "$pattern" <<<"$out" && ! grep -q '^.at org\.apache' <<<"$out"; then
    echo "PASS $name ($((SECONDS - begin)) s)"
    return 0
  fi
  failed=1
  echo "FAIL $name: nothing matches $pattern"
  head -20 <<<"$out" | sed 's/^/     /'
  return 1
}

also() { # NAME PATTERN COUNT: exactly COUNT lines of the last output match
  local n
  n=$(grep -Ec -- "$2" <<<"$out")
  if [ "$n" -eq "$3" ]; then echo "PASS $1"; return 0; fi
  failed=1
  echo "FAIL $1: $n instead of $3 lines match $2"
  head -20 <<<"$out" | sed 's/^/     /'
}

drain() { # NAME COUNT: a consumer of the group gets COUNT messages
  local begin=$SECONDS
  if out=$("$here/java/run.sh" client55 compat.Drain "$namesrv" "$group" "$topic" "$2" 75 2>/dev/null); then
    echo "PASS $1 ($((SECONDS - begin)) s)"
    return
  fi
  failed=1
  echo "FAIL $1: consumed $(grep -c . <<<"$out") instead of $2"
}

re() { sed 's/[.[\*^$()+?{|]/\\&/g' <<<"$1"; }
c=$(re "$cluster") b=$(re "$broker") a=$(re "$addr")

begin_ms=$(($(date +%s%3N) - 1000))
check clusterList "^$c +$b +0 +$a +V5_5_0 .* true *$" clusterList
check updateTopic "^create topic to .* success" updateTopic -c "$cluster" -t "$topic" -r 4 -w 4
check "updateTopic -b" "topicName=$topic, readQueueNums=4, writeQueueNums=4, perm=RW-" updateTopic -b "$addr" -t "$topic" -r 4 -w 4
check topicList "^$topic\$" topicList
check "topicList -c" "^$c +$topic" topicList -c
check topicRoute "\"brokerName\":\"$b\"" topicRoute -t "$topic"
also "topicRoute queues" '"writeQueueNums":4' 1
also "topicRoute address" "0:\"$a\"" 1
check topicStatus "^$b +3 +0 +0 " topicStatus -t "$topic"
check brokerStatus "^brokerVersionDesc +: V5_5_0" brokerStatus -b "$addr"
also "brokerStatus keys" '^(bootTimestamp|putTps|getTotalTps|msgPutTotalTodayNow|commitLogMaxOffset|runtime|consumeQueueDiskRatio|commitLogDiskRatio) +:' 8
check "brokerStatus -c" "brokerVersionDesc +: V5_5_0" brokerStatus -c "$cluster"
once sendMessage "^$b +[0-3] +SEND_OK +[0-9A-F]{32}" sendMessage -t "$topic" -p hello-1 -c TagA -k key1
once "sendMessage to a queue" "^$b +2 +SEND_OK +[0-9A-F]{32}" sendMessage -t "$topic" -p hello-2 -b "$broker" -i 2
check consumeMessage "BODY: hello-1" consumeMessage -t "$topic"
also "consumeMessage second" "BODY: hello-2" 1
drain "consumer drains the topic" 2
id=$(awk '$4 == "hello-1" {print $3; exit}' <<<"$out")
check topicStatus "^$b +2 +0 +[12] +20[0-9][0-9]-" topicStatus -t "$topic"
check consumerProgress "^Consume Diff Total: 0\$" consumerProgress -g "$group"
also "consumerProgress queues" "^$topic +$b +[0-3] " 4
check queryMsgById "^Keys: +\[key1\]" queryMsgById -i "$id" -t "$topic"
also "queryMsgById origin" "^(OffsetID: +$id|Topic: +$topic|Tags: +\[TagA\])\$" 3
check resetOffsetByTime "^$b +2 +0" resetOffsetByTime -g "$group" -t "$topic" -s "$begin_ms"
check "consumerProgress after the reset" "^Consume Diff Total: 2\$" consumerProgress -g "$group"
drain "consumer drains the topic again" 2
check "consumerProgress in the end" "^Consume Diff Total: 0\$" consumerProgress -g "$group"
check deleteTopic "^delete topic \[$topic\] from NameServer success" deleteTopic -c "$cluster" -t "$topic"
also "deleteTopic on brokers" "^delete topic \[$topic\] from cluster \[$c\] success" 1
begin=$SECONDS
until admin topicList; ! grep -q "^$topic\$" <<<"$out" || [ $((SECONDS - begin)) -ge 15 ]; do sleep 0.5; done
also "topicList without the topic" "^$topic\$" 0
exit $failed
