#!/bin/sh
# trial.sh ROOT: builds the image by buildah where no registry of images can be reached, and runs it.  The
# Containerfile is as it is; for its base, python:VERSION-slim, stands a Debian of debootstrap, which is made
# in the folder ROOT if it is missing.  As root, with buildah and debootstrap; outside of CI.
set -eu
cd "$(dirname "$0")/../.."
root=$1
if [ ! -e "$root/etc/debian_version" ]; then
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$release" "$root"
fi
version=$(chroot "$root" python3 -c 'import sys; print("{}.{}".format(*sys.version_info))')
work=$(mktemp -d)
build="buildah --root $work/images --runroot $work/run --storage-driver vfs"
trap '$build rm --all >/dev/null 2>&1 || :; rm -rf "$work"' EXIT

tar -C "$root" -cf "$work/base.tar" .
base=$($build from scratch)
$build add --quiet "$base" "$work/base.tar" / >/dev/null
$build commit --quiet "$base" "docker.io/library/python:$version-slim" >/dev/null
$build rm "$base" >/dev/null
rm "$work/base.tar"
mkdir "$work/context"
git archive HEAD | tar -x -C "$work/context"
# what pip is told on this machine
set -- --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro
[ ! -e /etc/pip.conf ] || set -- "$@" --volume /etc/pip.conf:/etc/pip.conf:ro
$build bud --quiet --format docker --isolation chroot --pull-never --build-arg "PYTHON=$version" "$@" \
    -f "$work/context/Containerfile" -t gsocks "$work/context" >/dev/null
for wanted in '"User": "65532:65532"' '"StopSignal": "SIGTERM"' '"Healthcheck"'; do
    $build inspect --type image localhost/gsocks | grep -q "$wanted"
done
echo "ok: built, for $($build from --pull-never --name trial localhost/gsocks >/dev/null; $build run --isolation chroot trial -- id -u)"

mkdir -m 755 "$work/etc"
cat >"$work/etc/config.yaml" <<CONFIG
server: {listen: "127.0.0.1:8388", keys: {me: {file: /var/lib/gsocks/gsocks.key}}}
CONFIG
chmod 644 "$work/etc/config.yaml"
# a network of its own: the port may be in use here
unshare --net sh -c 'ip link set lo up; exec "$@"' sh $build run --isolation chroot \
    --volume "$work/etc:/etc/gsocks:ro" trial -- sh -c '
    gsocks -c /etc/gsocks/config.yaml & pid=$!
    left=50
    until gsocks health -c /etc/gsocks/config.yaml; do
        left=$((left - 1)); [ "$left" -gt 0 ] || exit 1; sleep 0.2
    done
    test "$(stat -c %a /var/lib/gsocks/gsocks.key)" = 600
    kill -TERM "$pid"; wait "$pid"'
echo "ok: runs without root, makes its key in the volume, is healthy, and ends cleanly"
