#!/bin/sh
# run.sh ROOT: the units under a real systemd, which boots as the first process of a container that
# shares no file, no process and no network with this machine.  As root, with systemd-container and
# debootstrap; needs a Debian package in dist/ (make deb).  ROOT is a folder for a Debian, which is
# made there if it is missing (300 MB), and is used again the next time.
# Outside of CI: it takes minutes, and Debian's archive.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$1
python=$(dpkg-deb --field "$here"/../../../dist/gsocks_*.deb Depends | sed -E 's/.*(python3\.[0-9]+).*/\1/; t; s/.*//')
if [ ! -e "$root/etc/debian_version" ]; then
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,curl${python:+,$python} \
        "$release" "$root"
fi
trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
cp "$here/inside.sh" "$here"/../../../dist/gsocks_*.deb "$trial/"
mkdir -p "$root/trial" "$root/etc/systemd/system/multi-user.target.wants"
cat >"$root/etc/systemd/system/trial.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/bin/sh /trial/inside.sh >/trial/log 2>&1; systemctl exit $?'
UNIT
ln -sf /etc/systemd/system/trial.service "$root/etc/systemd/system/multi-user.target.wants/trial.service"
status=0
# what is written goes to memory, and is forgotten with the container
timeout --kill-after=10 300 systemd-nspawn --quiet --directory="$root" --volatile=overlay \
    --bind="$trial:/trial" --register=no --keep-unit --private-network --boot \
    >"$trial/boot" 2>&1 || status=$?
cat "$trial/log" || cat "$trial/boot"
exit "$status"
