#!/bin/sh
# link.sh [--remove] DESTDIR PREFIX BINDIR SHAREDIR UNITDIR: links from where programs, man pages,
# completions and units are looked for into the venv in PREFIX
set -eu
remove=
[ "$1" = --remove ] && remove=1 && shift
dest=$1 prefix=$2 bin=$3 share=$4 units=$5
here=$(dirname "$0")

link() {  # a file below the venv, and where it is to be
    if [ -n "$remove" ]; then
        # only what this script has made
        if [ "$(readlink "$dest$2" || :)" = "$prefix/$1" ]; then rm -f "$dest$2"; fi
        return
    fi
    mkdir -p "$dest$(dirname "$2")"
    ln -sfn "$prefix/$1" "$dest$2"
}

link bin/gsocks "$bin/gsocks"
for file in man/man1/gsocks.1 bash-completion/completions/gsocks \
    zsh/site-functions/_gsocks fish/vendor_completions.d/gsocks.fish; do
    link "share/$file" "$share/$file"
done

[ -d "$dest$units" ] || exit 0
for unit in gsocks.service gsocks@.service; do
    if [ -n "$remove" ]; then
        rm -f "$dest$units/$unit"
    else
        sed "s|/usr/bin/gsocks|$prefix/bin/gsocks|" "$here/systemd/$unit" >"$dest$units/$unit"
    fi
done
