#!/usr/bin/env bash
# Builds Kubernetes' own programs from its Go modules, once, into ${RAFTMQ_CACHE}/kube/bin-VERSION.
#
#   kubernetes.sh [PROGRAM...]      (none: all of them; prints the folder)
#
# Upstream publishes the staging modules (k8s.io/api, ...) apart from the main one, which asks for
# them as v0.0.0: so the module written here replaces each by the version of the same release.
# A program is put in place by one rename as soon as it is linked; what is there is not built again.
set -euo pipefail

version=1.36.3
all=(kube-apiserver kube-controller-manager kubectl kube-proxy kube-scheduler kubelet)
home=${RAFTMQ_CACHE:-$HOME/.cache/raftmq}/kube
bin=$home/bin-$version
module=$home/build-$version

[ $# -gt 0 ] || set -- "${all[@]}"
wanted=("$@")

missing() {
  local program
  for program in "${wanted[@]}"; do
    [ -x "$bin/$program" ] || echo "$program"
  done
}

# The module that builds them: written again only when another version is asked for.
write_module() {
  [ ! -f "$module/.complete" ] || return 0
  rm -rf "$module"
  mkdir -p "$module"
  cd "$module"
  go mod init raftmq.test/kubernetes
  local upstream staging program
  upstream=$(go mod download -json "k8s.io/kubernetes@v$version" |
    sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
  # Upstream's go line and godebug settings hold for the programs as released, so they hold here.
  go mod edit -go="$(awk '$1 == "go" { print $2 }' "$upstream")" \
    -require="k8s.io/kubernetes@v$version"
  awk '/^godebug/,/^\)/' "$upstream" >>go.mod
  for staging in $(awk '$2 == "v0.0.0" && $1 ~ /^k8s\.io\// { print $1 }' "$upstream"); do
    go mod edit -replace="$staging=$staging@v0.${version#*.}"
  done
  for program in "${all[@]}"; do
    go mod edit -tool="k8s.io/kubernetes/cmd/$program"
  done
  go mod tidy
  touch .complete
}

build() { # PROGRAM
  local stamp=k8s.io/component-base/version
  local rest=${version#*.}
  CGO_ENABLED=0 go build -trimpath -o "$bin/.$1.$$" -ldflags "-s -w \
    -X $stamp.gitVersion=v$version -X $stamp.gitMajor=${version%%.*} -X $stamp.gitMinor=${rest%%.*}" \
    "k8s.io/kubernetes/cmd/$1"
  mv "$bin/.$1.$$" "$bin/$1"
}

mkdir -p "$bin"
# Two runs at a time would only share the processor: the second waits and finds everything built.
exec 9>"$home/.kubernetes.lock"
flock 9
if [ -n "$(missing)" ]; then
  command -v go >/dev/null || { echo "Kubernetes is built with Go: install Go 1.26 or newer" >&2; exit 1; }
  {
    write_module
    cd "$module"
    for program in $(missing); do
      echo "building $program $version"
      build "$program"
    done
  } >&2
fi
echo "$bin"
