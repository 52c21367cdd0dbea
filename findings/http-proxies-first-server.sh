#!/usr/bin/env bash
# pproxy 2.7.9 and proxy.py 2.4.10 as HTTP proxies: all requests in absolute form that come over one
# connection go to the server of the first one, whatever their URLs are.
#
# RFC 9112 section 3.2.2 has a proxy go by the URL of each request, and curl sends requests for any
# number of servers over one connection to a proxy. Here it is told to get a page of one server and
# then one of another: both come from the first one, which is also sent the headers for the second.
#
# Seen with Python 3.11 and curl 7.88 on Linux x86_64.
set -euo pipefail
folder=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pproxy==2.7.9 proxy.py==2.4.10
cat >"$folder/server.py" <<'PY'
import http.server
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{sys.argv[1]} answers for {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
PY
read -r first second pproxy proxypy < <(python3 - <<'PY'
import socket
socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(sock.getsockname()[1] for sock in socks))
PY
)
begin() {
    "$@" >>"$folder/log" 2>&1 &
    pids+=($!)
}
begin python3 "$folder/server.py" first "$first"
begin python3 "$folder/server.py" second "$second"
begin "$folder/venv/bin/pproxy" -l "http://127.0.0.1:$pproxy"
begin "$folder/venv/bin/proxy" --hostname 127.0.0.1 --port "$proxypy" --num-workers 1 --data-dir "$folder/data"
for port in "$first" "$second" "$pproxy" "$proxypy"; do
    for _ in $(seq 100); do
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
        sleep 0.1
    done
done
for name in pproxy proxypy; do
    echo "$name:"
    curl --silent --noproxy '' --proxy "http://127.0.0.1:${!name}" \
        "http://127.0.0.1:$first/one" "http://127.0.0.1:$second/two"
done | tee "$folder/output"
diff - "$folder/output" <<'EXPECTED'
pproxy:
first answers for /one
first answers for /two
proxypy:
first answers for /one
first answers for /two
EXPECTED
echo "as stated"
