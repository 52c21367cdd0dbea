#!/bin/sh
# inside.sh: what is tried of the units by run.sh, in the container
set -eu
trap 'status=$?; [ "$status" = 0 ] || { journalctl --no-pager -q -n 60; echo "FAILED"; }' EXIT

ok() { echo "ok: $*"; }
# until COMMAND...: waits for it, half a minute at most
until_true() {
    left=150
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { echo "not within 30 s: $*"; exit 1; }
        sleep 0.2
    done
}
value() { systemctl show --value --property="$1" "$2"; }
page() { curl -sS --max-time 10 --proxy "$1" http://127.0.0.1:8000/; }

mkdir -p /trial/pages
echo hello >/trial/pages/index.html
systemd-run --quiet --unit=pages python3 -m http.server --directory /trial/pages --bind 127.0.0.1 8000
until_true curl -sS -o /dev/null http://127.0.0.1:8000/

dpkg -i /trial/gsocks_*.deb >/dev/null
[ "$(value ActiveState gsocks)" = inactive ]
id -u gsocks >/dev/null
ok "the package is installed, its user made, and nothing started without a config"

# the server: a key that root alone may read, as a credential
gsocks keygen /etc/gsocks/gsocks.key
cat >/etc/gsocks/config.yaml <<CONFIG
workers: 2
server:
  listen: 127.0.0.1:8388
  keys: {me: {file: /run/credentials/gsocks.service/gsocks.key}}
  rules: [allow all]
CONFIG
mkdir -p /etc/systemd/system/gsocks.service.d
cat >/etc/systemd/system/gsocks.service.d/trial.conf <<CONFIG
[Service]
LoadCredential=gsocks.key:/etc/gsocks/gsocks.key
WatchdogSec=4
CONFIG
# local: by the template, with a copy of the key for its group
install -g gsocks -m 640 /etc/gsocks/gsocks.key /etc/gsocks/local.key
cat >/etc/gsocks/local.yaml <<CONFIG
local:
  listen: 127.0.0.1:1080
  exits: [{url: "gsocks://127.0.0.1:8388", key_file: /etc/gsocks/local.key}]
  rules: [allow all]
CONFIG
chgrp gsocks /etc/gsocks/*.yaml
chmod 640 /etc/gsocks/*.yaml
systemctl daemon-reload
systemctl enable --quiet gsocks
systemctl start gsocks gsocks@local
[ "$(page socks5h://127.0.0.1:1080)" = hello ]
ok "started with a key by LoadCredential, and served at once: $(value StatusText gsocks)"

pid=$(value MainPID gsocks)
[ "$(stat -c %U "/proc/$pid")" = gsocks ]
grep -q '^CapEff:	0*$' "/proc/$pid/status"
grep -q '^NoNewPrivs:	1$' "/proc/$pid/status"
grep -q '^Seccomp:	2$' "/proc/$pid/status"
grep -q ' / .* ro[, ]' "/proc/$pid/mountinfo"
ok "runs as gsocks without a capability, under seccomp, on a root that is read-only"

systemd-analyze security --threshold=20 gsocks gsocks@local >/trial/security
ok "$(grep -h 'Overall exposure' /trial/security | sed 's/^[^O]*//' | sort -u | tr '\n' ' ')"

[ "$(value MemoryDenyWriteExecute gsocks)" = yes ]
case $(value After gsocks) in *time-sync.target*) ;; *) exit 1 ;; esac
ok "is started after time-sync.target"

sed -i 's/127.0.0.1:1080/127.0.0.1:1081/; s/allow all\]/allow all]\n  rotate: fastest/' /etc/gsocks/local.yaml
systemctl reload gsocks@local
until_true sh -c 'journalctl -q -u gsocks@local | grep -q "reloaded: keys"'
[ "$(page socks5h://127.0.0.1:1081)" = hello ]
! page socks5h://127.0.0.1:1080 >/dev/null 2>&1
ok "systemctl reload has moved the listener"

echo 'local: {listen: 1}' >/etc/gsocks/local.yaml
systemctl reload gsocks@local
until_true sh -c 'journalctl -q -u gsocks@local | grep -q "not reloaded, the previous config stays"'
[ "$(page socks5h://127.0.0.1:1081)" = hello ]
ok "a config with a mistake is refused, and the old one serves"

kill -STOP "$pid"
until_true sh -c '[ "$(systemctl show --value -p NRestarts gsocks)" = 1 ]'
until_true sh -c '[ "$(systemctl show --value -p ActiveState gsocks)" = active ]'
[ "$(page socks5h://127.0.0.1:1081)" = hello ]
ok "a parent that hangs is ended by the watchdog, and started again"

worker=$(pgrep -P "$(value MainPID gsocks)" | head -n 1)
kill -STOP "$worker"
until_true sh -c 'journalctl -q -u gsocks | grep -q "hangs for"'
until_true sh -c '! kill -0 '"$worker"' 2>/dev/null'
[ "$(value NRestarts gsocks)" = 1 ]
ok "a worker that hangs is killed by its parent, which goes on"

cat >/etc/systemd/system/gsocks-proxy.socket <<UNIT
[Socket]
ListenStream=127.0.0.1:80
FileDescriptorName=proxy
Service=gsocks@proxy.service
UNIT
cat >/etc/gsocks/proxy.yaml <<CONFIG
local: {listen: "systemd:proxy", exits: [direct], rules: [allow all]}
CONFIG
chgrp gsocks /etc/gsocks/proxy.yaml
systemctl daemon-reload
systemctl start gsocks-proxy.socket
[ "$(value ActiveState gsocks@proxy)" = inactive ]
[ "$(page socks5h://127.0.0.1:80)" = hello ]
[ "$(value ActiveState gsocks@proxy)" = active ]
ok "the first client at a socket of systemd's, at port 80, starts the service"

systemctl restart gsocks@proxy &
[ "$(page socks5h://127.0.0.1:80)" = hello ]
wait
ok "and a client that comes while it restarts waits"

before=$(value MainPID gsocks)
dpkg -i /trial/gsocks_*.deb >/dev/null
[ "$(value ActiveState gsocks)" = active ]
[ "$(value MainPID gsocks)" != "$before" ]
[ "$(page socks5h://127.0.0.1:1081)" = hello ]
ok "an upgrade of the package restarts what runs"

systemctl stop gsocks@local gsocks@proxy gsocks
[ "$(value Result gsocks)" = success ]
[ "$(value Result gsocks@local)" = success ]
ok "systemctl stop ends it cleanly"

dpkg --purge gsocks >/dev/null
[ ! -e /var/lib/gsocks ]
[ ! -e /opt/gsocks ]
[ -e /etc/gsocks/config.yaml ]
ok "a purge removes what gsocks has made, and leaves the configs"
