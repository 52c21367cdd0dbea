#!/usr/bin/env bash
# gevent 26.9.0: gevent.ssl.create_default_context() returns a context of the ssl module, not of gevent.ssl:
# the sockets that it wraps block the whole loop in their handshake, reads and writes.
#
# gevent.ssl offers every name of ssl, and puts its own SSLContext, SSLSocket and wrap_socket in the place of
# some.  create_default_context is ssl's own function, which makes the SSLContext of ssl.  After
# monkey.patch_all() that is gevent's too, so a patched program never sees it.  Without patching,
# gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) with load_default_certs() is the cooperative one.
#
# Seen with Python 3.11 on Linux x86_64: no turn of the loop during a handshake that the far end leaves
# unanswered for 0.3 s with the one, many with the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/handshake.py" <<'PY'
import socket
import threading
import time

import gevent
from gevent import ssl
from gevent import socket as gevent_socket

contexts = {
    "create_default_context()": ssl.create_default_context(),
    "SSLContext(PROTOCOL_TLS_CLIENT)": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
}
for name, context in contexts.items():
    listener = socket.create_server(("127.0.0.1", 0))

    def close_late():
        accepted, _ = listener.accept()
        time.sleep(0.3)
        accepted.close()

    threading.Thread(target=close_late).start()
    sock = gevent_socket.create_connection(listener.getsockname())
    turns = 0

    def count():
        global turns
        while True:
            gevent.sleep(0.01)
            turns += 1

    counting = gevent.spawn(count)
    gevent.sleep(0)
    try:
        context.wrap_socket(sock, server_hostname="example.com")
    except OSError:
        pass
    print(f"{name}: {type(context).__module__}, the loop", "goes on" if turns > 2 else "is blocked")
    counting.kill()
    listener.close()
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: gevent==26.9.0
"$folder/venv/bin/python" "$folder/handshake.py" | tee "$folder/output"
diff - "$folder/output" <<'EXPECTED'
create_default_context(): ssl, the loop is blocked
SSLContext(PROTOCOL_TLS_CLIENT): gevent.ssl, the loop goes on
EXPECTED
echo "as stated"
