"""Debian's commands."""

from __future__ import annotations

from tests.clients.client import client

GET = r"printf 'GET /found.txt HTTP/1.0\r\nHost: localhost\r\n\r\n'"

client(
    "curl", "Debian: curl", "curl --version",
    {
        "SOCKS4": "curl -sS -x socks4://{open} {page}",
        "SOCKS4a": "curl -sS -x socks4a://{open} {page}",
        "SOCKS5": "curl -sS -x socks5h://{open} {page}",
        "HTTP": "curl -sS -x http://{open} {page}",
        "HTTPS": "curl -sS -x http://{open} --cacert {ca} {secure}",
        "password": "curl -sS -x socks5h://{login} {page} && curl -sS -x http://{login} {page}",
    },
    "`socks5h`, or names are looked up here",
)  # fmt: skip
client(
    "wget", "Debian: wget", "wget --version",
    {
        "HTTP": "wget -qO- -e http_proxy=http://{open} {page}",
        "HTTPS": "wget -qO- -e https_proxy=http://{open} --ca-certificate={ca} {secure}",
        "password": "wget -qO- -e http_proxy=http://{login} {page}",
    },
    "no SOCKS",
)  # fmt: skip
client(
    "aria2", "Debian: aria2", "aria2c --version",
    {
        "HTTP": "aria2c -q --all-proxy=http://{open} -o got {page} && cat got",
        "HTTPS": "aria2c -q --all-proxy=http://{open} --ca-certificate={ca} -o got {secure} "
                 "&& cat got",
        "password": "aria2c -q --all-proxy=http://{login} -o got {page} && cat got",
    },
    "no SOCKS",
)  # fmt: skip
client(
    "axel", "Debian: axel", "axel --version",
    {"HTTP": "http_proxy=http://{open} axel -q -o got {page} && cat got"},
    "by `http_proxy`",
)  # fmt: skip
client(
    "HTTPie", "Debian: httpie", "http --version",
    {
        "SOCKS5": "http --ignore-stdin --proxy=http:socks5h://{open} --body {page}",
        "HTTP": "http --ignore-stdin --proxy=http:http://{open} --body {page}",
        "password": "http --ignore-stdin --proxy=http:http://{login} --body {page}",
    },
)  # fmt: skip
client(
    "lftp", "Debian: lftp", "lftp --version",
    {
        "HTTP": "lftp -c 'set http:proxy http://{open}; cat {page}'",
        "password": "lftp -c 'set http:proxy http://{login}; cat {page}'",
    },
)  # fmt: skip
client(
    "links", "Debian: links", "links -version",
    {
        "SOCKS4a": "links -socks-proxy {open} -source {page}",
        "HTTP": "links -http-proxy {open} -source {page}",
    },
    "may fall back to a direct connection: `-only-proxies 1`",
)  # fmt: skip
client(
    "elinks", "Debian: elinks", "elinks -version",
    {"HTTP": "elinks -no-home -eval 'set protocol.http.proxy.host = \"{open}\"' "
             "-eval 'set protocol.no_proxy = \"\"' -dump {page}"},
    "spares what `protocol.no_proxy` names",
)  # fmt: skip
client(
    "w3m", "Debian: w3m", "w3m -version",
    {"HTTP": "w3m -o use_proxy=1 -o no_proxy= -o http_proxy=http://{open}/ -dump_source {page} "
             "| (gunzip -cf || cat)"},
)  # fmt: skip
client(
    "Lynx", "Debian: lynx", "lynx -version",
    {"HTTP": "http_proxy=http://{open}/ lynx -source {page}"},
)  # fmt: skip
client(
    "nc (OpenBSD)", "Debian: netcat-openbsd",
    "dpkg-query -W -f '${Version}' netcat-openbsd",
    {
        "SOCKS4": GET + " | nc.openbsd -N -X 4 -x {open} localhost {web}",
        "SOCKS5": GET + " | nc.openbsd -N -X 5 -x {open} localhost {web}",
        "HTTP": GET + " | nc.openbsd -N -X connect -x {open} localhost {web}",
    },
    "`-N` ends its side with the input",
)  # fmt: skip
client(
    "ncat", "Debian: ncat", "ncat --version",
    {
        "SOCKS4": GET + " | ncat --proxy {open} --proxy-type socks4 127.0.0.1 {web}",
        "SOCKS5": GET + " | ncat --proxy {open} --proxy-type socks5 localhost {web}",
        "HTTP": GET + " | ncat --proxy {open} --proxy-type http localhost {web}",
        "password": GET + " | ncat --proxy 127.0.0.1:{guarded} --proxy-type socks5 "
                          "--proxy-auth {name}:{password} localhost {web}",
    },
)  # fmt: skip
client(
    "socat", "Debian: socat", "socat -V",
    {
        "SOCKS4": GET + " | socat -t5 - SOCKS4:127.0.0.1:127.0.0.1:{web},socksport={port}",
        "SOCKS4a": GET + " | socat -t5 - SOCKS4A:127.0.0.1:localhost:{web},socksport={port}",
        "HTTP": GET + " | socat -t5 - PROXY:127.0.0.1:localhost:{web},proxyport={port}",
        "password": GET + " | socat -t5 - PROXY:127.0.0.1:localhost:{web},proxyport={guarded},"
                          "proxyauth={name}:{password}",
    },
)  # fmt: skip
client(
    "connect-proxy", "Debian: connect-proxy", "dpkg-query -W -f '${Version}' connect-proxy",
    {
        "SOCKS4": GET + " | connect-proxy -4 -R both -S {open} localhost {web}",
        "SOCKS5": GET + " | connect-proxy -5 -R remote -S {open} localhost {web}",
        "HTTP": GET + " | connect-proxy -H {open} localhost {web}",
    },
    "no login where names matter: `prefer_login: false`",
)  # fmt: skip
client(
    "corkscrew", "Debian: corkscrew", "dpkg-query -W -f '${Version}' corkscrew",
    {"HTTP": "(" + GET + "; sleep 1) | corkscrew 127.0.0.1 {port} localhost {web}"},
)  # fmt: skip
client(
    "proxytunnel", "Debian: proxytunnel", "proxytunnel --version",
    {
        "HTTP": "(" + GET + "; sleep 1) | proxytunnel -q -p {open} -d localhost:{web}",
        "password": "(" + GET + "; sleep 1) | proxytunnel -q -p 127.0.0.1:{guarded} "
                    "-P {name}:{password} -d localhost:{web}",
    },
)  # fmt: skip
CHAIN = "printf 'strict_chain\\nproxy_dns\\n[ProxyList]\\n{line}\\n' >c; "
client(
    "proxychains4", "Debian: proxychains4", "dpkg-query -W -f '${Version}' proxychains4",
    {
        "SOCKS4": CHAIN.replace("{line}", "socks4 127.0.0.1 {port}") +
                  "proxychains4 -q -f c curl -sS http://127.0.0.1:{web}/found.txt",
        "SOCKS5": CHAIN.replace("{line}", "socks5 127.0.0.1 {port}") +
                  "proxychains4 -q -f c wget -qO- http://127.0.0.1:{web}/found.txt",
        "HTTP": CHAIN.replace("{line}", "http 127.0.0.1 {port}") +
                "proxychains4 -q -f c curl -sS http://127.0.0.1:{web}/found.txt",
        "password": "printf 'strict_chain\\n[ProxyList]\\nsocks5 127.0.0.1 {guarded} {name} "
                    "{password}\\n' >c; "
                    "proxychains4 -q -f c curl -sS http://127.0.0.1:{web}/found.txt",
    },
    "catches programs that are linked dynamically, not Go's",
)  # fmt: skip
client(
    "APT", "Debian: apt", "apt-get --version",
    {
        "SOCKS5": "/usr/lib/apt/apt-helper -o Acquire::http::Proxy=socks5h://{open} "
                  "download-file {page} got && cat got",
        "HTTP": "/usr/lib/apt/apt-helper -o Acquire::http::Proxy=http://{open} "
                "download-file {page} got && cat got",
        "password": "/usr/lib/apt/apt-helper -o Acquire::http::Proxy=http://{login} "
                    "download-file {page} got && cat got",
    },
    "`Acquire::http::Proxy`",
)  # fmt: skip
client(
    "git", "Debian: git", "git --version",
    {
        "SOCKS5": "git -c http.proxy=socks5h://{open} clone -q "
                  "http://localhost:{web}/found.git got && cat got/found",
        "HTTP": "git -c http.proxy=http://{open} clone -q "
                "http://localhost:{web}/found.git got && cat got/found",
        "password": "git -c http.proxy=http://{login} clone -q "
                    "http://localhost:{web}/found.git got && cat got/found",
    },
    "`http.proxy`; for ssh the same ProxyCommand as ssh",
)  # fmt: skip
client(
    "ab (ApacheBench)", "Debian: apache2-utils", "ab -V",
    {"HTTP": "ab -q -n 3 -v 4 -X {open} {page}"},
)  # fmt: skip
client(
    "FFmpeg", "Debian: ffmpeg", "ffmpeg -version",
    {
        "HTTP": "ffmpeg -nostdin -v error -http_proxy http://{open} "
                "-i http://localhost:{web}/found.wav -f null - && echo found",
    },
    "no SOCKS; spares `no_proxy`",
)  # fmt: skip
client(
    "GStreamer (souphttpsrc)", "Debian: gstreamer1.0-tools gstreamer1.0-plugins-good",
    "gst-launch-1.0 --version | tail -n +2",
    {"HTTP": "gst-launch-1.0 -q souphttpsrc proxy=http://{open} location={page} ! "
             "filesink location=got && cat got"},
)  # fmt: skip
client(
    "Chromium", "Debian: chromium", "chromium --version --no-sandbox",
    {
        "SOCKS5": "chromium --headless=new --no-sandbox --disable-gpu --user-data-dir={work} "
                  "--proxy-server=socks5://{open} --proxy-bypass-list='<-loopback>' "
                  "--dump-dom http://localhost:{web}/index.html",
        "HTTP": "chromium --headless=new --no-sandbox --disable-gpu --user-data-dir={work} "
                "--proxy-server=http://{open} --proxy-bypass-list='<-loopback>' "
                "--dump-dom http://localhost:{web}/index.html",
    },
    "no password by SOCKS",
)  # fmt: skip
FIREFOX = (
    "mkdir p && printf '%s\\n' 'user_pref(\"network.proxy.type\", 1);' "
    "'user_pref(\"network.proxy.allow_hijacking_localhost\", true);' "
    '\'user_pref("network.proxy.no_proxies_on", "");\' >p/user.js; '
    "printf '%s\\n' {prefs} >>p/user.js; "
    "firefox-esr --headless --no-remote --profile p --screenshot {work}/shot.png "
    "http://localhost:{web}/index.html >/dev/null 2>&1; test -s shot.png && echo found"
)
client(
    "Firefox ESR", "Debian: firefox-esr", "firefox-esr --version",
    {
        "SOCKS5": FIREFOX.replace("{prefs}",
            "'user_pref(\"network.proxy.socks\", \"127.0.0.1\");' "
            "'user_pref(\"network.proxy.socks_port\", {port});' "
            "'user_pref(\"network.proxy.socks_remote_dns\", true);' "
            "'user_pref(\"network.proxy.socks5_remote_dns\", true);'"),
        "HTTP": FIREFOX.replace("{prefs}",
            "'user_pref(\"network.proxy.http\", \"127.0.0.1\");' "
            "'user_pref(\"network.proxy.http_port\", {port});'"),
    },
    "no password by SOCKS; \"Proxy DNS when using SOCKS v5\"",
)  # fmt: skip
EMACS = (
    "emacs --batch --eval '(progn (require (quote url)) {how} "
    '(with-current-buffer (url-retrieve-synchronously "{page}" t t 30) '
    "(princ (buffer-string))))'"
)
client(
    "Emacs", "Debian: emacs-nox", "emacs --version",
    {
        "SOCKS5": EMACS.replace("{how}",
            "(require (quote socks)) (setq url-gateway-method (quote socks) "
            "socks-noproxy nil socks-username \"\" socks-password \"\" "
            "socks-server (list \"gsocks\" \"127.0.0.1\" {port} 5))"),
        "HTTP": EMACS.replace("{how}",
            "(setq url-proxy-services (quote ((\"http\" . \"{open}\"))))"),
    },
    "socks.el offers a login always: set `socks-username` and `socks-password`, if to nothing",
)  # fmt: skip
