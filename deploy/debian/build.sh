#!/bin/sh
# build.sh FOLDER: gsocks as a Debian package for this machine's Python and architecture, into FOLDER.
# All that it needs besides Python lies in its own venv, in the versions of requirements/run.txt.
set -eu
cd "$(dirname "$0")/../.."
out=$1
python=${PYTHON:-/usr/bin/python3}
version=$(sed -nE 's/^__version__ = "(.*)"/\1/p' gsocks/__init__.py)
arch=$(dpkg --print-architecture)
minor=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/gsocks

mkdir -p "$tree/usr/lib/systemd/system" "$tree/usr/lib/sysusers.d"
# built where it is to be, or else its scripts would name this folder
make --no-print-directory install PYTHON="$python" DESTDIR="$tree" BINDIR=/usr/bin \
    SHAREDIR=/usr/share UNITDIR=/usr/lib/systemd/system
grep -rlI "$tree" "$tree/opt/gsocks" | xargs -r sed -i "s|$tree||g"
find "$tree" -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$tree/opt/gsocks/bin/pip"* "$tree/opt/gsocks/bin/activate"* "$tree/opt/gsocks/bin/Activate.ps1"
install -m 644 deploy/systemd/gsocks.sysusers "$tree/usr/lib/sysusers.d/gsocks.conf"
install -D -m 644 LICENSE "$tree/usr/share/doc/gsocks/copyright"

mkdir "$tree/DEBIAN"
cat >"$tree/DEBIAN/control" <<CONTROL
Package: gsocks
Version: $version-1
Architecture: $arch
Maintainer: The gsocks authors <maintainers@users.noreply.r-seed-6cdde50b.example>
Depends: python3 (>= $minor~), python3 (<< ${minor%.*}.$((${minor#*.} + 1))), adduser | systemd-sysusers
Section: net
Priority: optional
Installed-Size: $(du -sk --apparent-size "$tree" | cut -f1)
Description: encrypted SOCKS5 tunnel and rotating proxy
 A local end that programs talk to, a server elsewhere that goes out for them,
 and between the two a pool of connections that are opened before they are
 needed; a rotating proxy in front of a list of proxies as well.
CONTROL
install -m 755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm "$tree/DEBIAN/"
find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/gsocks_$version-1_$arch.deb"
