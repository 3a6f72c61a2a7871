#!/usr/bin/env bash
# Builds both images from their Dockerfiles, around programs that were built outside, without a
# registry; prints the archives, one a line, as `ctr images import` takes them.
#
#   images.sh BROKER OPERATOR      paths of the two programs
#
# The base image that a Dockerfile names last is made from Debian packages: a tree of the same
# release, put under the same name. The tree is kept in the cache.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../../.." && pwd)
home=${RAFTMQ_CACHE:-$HOME/.cache/raftmq}/kube
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml")

# What a small base image has: no shell is needed, and no maintainer script to run.
packages=base-files,base-passwd,ca-certificates,libc6,libgcc-s1,netbase,tzdata

storage=$(mktemp -d "${TMPDIR:-/tmp}/raftmq-images.XXXXXX")
trap 'rm -rf "$storage"' EXIT
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot

build() { # ARGUMENTS: buildah with a storage of our own, without the machine's settings
  buildah --storage-driver vfs --root "$storage/root" --runroot "$storage/run" "$@" >&2
}

suite() { # IMAGE: its Debian release
  case $1 in
    *bookworm* | *debian12* | *debian:12*) echo bookworm ;;
    *trixie* | *debian13* | *debian:13*) echo trixie ;;
    *) echo "do not know the Debian release of base image $1" >&2; return 1 ;;
  esac
}

tree() { # SUITE: path of the tree
  local file=$home/base-$1.tar
  if [ ! -f "$file" ]; then
    mmdebstrap --variant=extract --include="$packages" "$1" "$file.$$.tar" >&2
    mv "$file.$$.tar" "$file"
  fi
  echo "$file"
}

base() { # DOCKERFILE: makes the image that its last stage begins with
  local name container
  name=$(awk 'toupper($1) == "FROM" { name = $2 } END { print name }' "$1")
  build images --quiet "$name" >/dev/null 2>&1 && return
  container=$(buildah --storage-driver vfs --root "$storage/root" --runroot "$storage/run" from scratch)
  build add --quiet "$container" "$(tree "$(suite "$name")")" /
  # A short name is one of Docker's own images.
  case $name in */*) ;; *) name=docker.io/library/$name ;; esac
  build commit --quiet --rm "$container" "$name"
}

image() { # NAME PROGRAM DOCKERFILE: the archive
  local context=$storage/$1 archive=$storage/$1.tar
  mkdir -p "$context"
  strip --strip-debug -o "$context/$1" "$2"
  base "$3"
  build build --pull-never --build-arg BINARY=prebuilt --file "$3" --tag "$1:$version" "$context"
  build push --quiet "$1:$version" "docker-archive:$archive:docker.io/library/$1:$version"
  mv "$archive" "$home/images/$1.tar"
  echo "$home/images/$1.tar"
}

[ $# -eq 2 ] || { sed -n '2,/^set -e/{/^#/p}' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2; exit 2; }
"$here/tools.sh" node >/dev/null
mkdir -p "$home/images"
image raftmq "$1" "$repo/broker/Dockerfile"
image raftmq-operator "$2" "$repo/operator/Dockerfile"
