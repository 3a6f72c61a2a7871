#!/usr/bin/env bash
# Makes $CACHE/java/{server,client55,client49}.cp (one class path line each) and
# compiles the test programs to $CACHE/java/classes-{server,client55,client49}.
# Fast when nothing changed; safe to run several times at once.
# Prints the folder. `classpaths.sh NAME` prints the class path itself, with the
# compiled programs of ours in front.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${RAFTMQ_CACHE:-$HOME/.cache/raftmq}/java
mkdir -p "$out"

stamp() { cat "$@" | sha256sum | cut -d' ' -f1; }

usable() { # FILE: every jar named in it is still there
  local jar
  [ -s "$1" ] || return 1
  while IFS= read -r jar; do [ -f "$jar" ] || return 1; done < <(tr ':' '\n' <"$1")
}

resolve() { # NAME
  local name=$1 pom="$here/$1/pom.xml" cp="$out/$1.cp" want
  want=$(stamp "$pom")
  if usable "$cp" && [ "$(cat "$cp.sum" 2>/dev/null)" = "$want" ]; then return; fi
  echo "resolving $name jars" >&2
  rm -rf "$out/lib-$name.new"
  mvn -q -B -f "$pom" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$out/lib-$name.new" >&2
  rm -rf "$out/lib-$name"
  mv "$out/lib-$name.new" "$out/lib-$name"
  find "$out/lib-$name" -name '*.jar' | LC_ALL=C sort | paste -sd: | tr -d '\n' >"$cp.new"
  mv "$cp.new" "$cp"
  echo "$want" >"$cp.sum"
}

compile() { # NAME SOURCE-FOLDER...
  local name=$1 dst="$out/classes-$1" want
  shift
  local files=()
  while IFS= read -r f; do files+=("$f"); done < <(find "$@" -name '*.java' 2>/dev/null | LC_ALL=C sort)
  [ ${#files[@]} -gt 0 ] || return 0
  want=$(stamp "${files[@]}" "$out/$name.cp")
  if [ "$(cat "$dst/.sum" 2>/dev/null)" = "$want" ]; then return; fi
  rm -rf "$dst.new"
  mkdir -p "$dst.new"
  javac -nowarn -Xlint:none --release 8 -cp "$(cat "$out/$name.cp")" -d "$dst.new" "${files[@]}" 2> >(grep -v '^Note:\|^warning: \[options\]' >&2)
  echo "$want" >"$dst.new/.sum"
  rm -rf "$dst"
  mv "$dst.new" "$dst"
}

exec 9>"$out/.lock"
flock 9
resolve server
resolve client55
resolve client49
compile client55 "$here/src" "$here/src55"
compile server "$here/srcadmin"
compile client49 "$here/src" "$here/src49"
exec 9>&-

case ${1:-} in
  "") echo "$out" ;;
  server | client55 | client49) echo "$out/classes-$1:$(cat "$out/$1.cp")" ;;
  *) echo "no such class path: $1" >&2; exit 2 ;;
esac
