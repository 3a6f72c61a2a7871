#!/usr/bin/env bash
# Builds CoreDNS from its Go module, once, into ${RAFTMQ_CACHE}/kube/coredns-VERSION; prints it.
#
# It takes the Kubernetes client modules of the version that kubernetes.sh builds: what that has
# compiled already is not compiled again.
set -euo pipefail

version=1.14.7
client=0.36.3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${RAFTMQ_CACHE:-$HOME/.cache/raftmq}/kube
program=$home/coredns-$version

mkdir -p "$home"
exec 9>"$home/.coredns.lock"
flock 9
if [ ! -x "$program" ]; then
  command -v go >/dev/null || { echo "CoreDNS is built with Go: install Go 1.26 or newer" >&2; exit 1; }
  module=$home/build-coredns
  rm -rf "$module"
  mkdir -p "$module"
  cp "$here/coredns.go" "$module/main.go"
  (
    cd "$module"
    echo "building CoreDNS $version"
    go mod init raftmq.test/coredns
    go mod edit -require="github.com/coredns/coredns@v$version"
    for part in api apimachinery client-go; do
      go mod edit -require="k8s.io/$part@v$client"
    done
    go mod tidy
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$program.$$" .
    mv "$program.$$" "$program"
  ) >&2
  rm -rf "$module"
fi
echo "$program"
