"""Libraries of many languages, each by a script of a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.clients.client import Places, client
from tests.support.real import websocket_echo

# --- Perl, PHP, Ruby, Tcl, Lua --------------------------------------------------------------------

client(
    "LWP (Perl)", "Debian: libwww-perl liblwp-protocol-socks-perl",
    "perl -MLWP -e 'print $LWP::VERSION'",
    {
        "SOCKS5": "perl -MLWP::UserAgent -e '$u = LWP::UserAgent->new; "
                  "$u->proxy([\"http\"], \"socks://{open}\"); print $u->get(\"{page}\")->content'",
        "HTTP": "perl -MLWP::UserAgent -e '$u = LWP::UserAgent->new; "
                "$u->proxy([\"http\"], \"http://{open}/\"); print $u->get(\"{page}\")->content'",
        "password": "perl -MLWP::UserAgent -e '$u = LWP::UserAgent->new; "
                    "$u->proxy([\"http\"], \"http://{name}:{password}\\@127.0.0.1:{guarded}/\"); "
                    "print $u->get(\"{page}\")->content'",
    },
    "SOCKS by LWP::Protocol::socks",
)  # fmt: skip
PERL_SOCKS = (
    'perl -MIO::Socket::Socks -e \'$s = IO::Socket::Socks->new(ProxyAddr => "127.0.0.1", '
    'ConnectAddr => "localhost", ConnectPort => {web}, {how}) or die $SOCKS_ERROR; '
    'print $s "GET /found.txt HTTP/1.0\\r\\n\\r\\n"; print while <$s>\''
)
client(
    "IO::Socket::Socks (Perl)", "Debian: libio-socket-socks-perl",
    "perl -MIO::Socket::Socks -e 'print $IO::Socket::Socks::VERSION'",
    {
        "SOCKS4a": PERL_SOCKS.replace("{how}", "ProxyPort => {port}, SocksVersion => 4"),
        "SOCKS5": PERL_SOCKS.replace("{how}", "ProxyPort => {port}, SocksVersion => 5"),
        "password": PERL_SOCKS.replace("{how}",
            "ProxyPort => {guarded}, SocksVersion => 5, AuthType => \"userpass\", "
            "Username => \"{name}\", Password => \"{password}\""),
    },
)  # fmt: skip
PHP_CURL = (
    'php -r \'$c = curl_init("{page}"); curl_setopt($c, CURLOPT_PROXY, "{how}"); curl_exec($c);\''
)
client(
    "PHP (curl)", "Debian: php-cli php-curl", "php --version",
    {
        "SOCKS5": PHP_CURL.replace("{how}", "socks5h://{open}"),
        "HTTP": PHP_CURL.replace("{how}", "http://{open}"),
        "password": PHP_CURL.replace("{how}", "socks5h://{login}"),
    },
)  # fmt: skip
client(
    "PHP (streams)", "Debian: php-cli", "php --version",
    {
        "HTTP": "php -r 'echo file_get_contents(\"{page}\", false, stream_context_create("
                "[\"http\" => [\"proxy\" => \"tcp://{open}\", \"request_fulluri\" => true]]));'",
    },
    "`request_fulluri`",
)  # fmt: skip
client(
    "Ruby (Net::HTTP)", "Debian: ruby", "ruby --version",
    {
        "HTTP": "ruby -rnet/http -e 'print Net::HTTP.new(\"localhost\", {web}, \"127.0.0.1\", "
                "{port}).get(\"/found.txt\").body'",
        "password": "ruby -rnet/http -e 'print Net::HTTP.new(\"localhost\", {web}, \"127.0.0.1\", "
                    "{guarded}, \"{name}\", \"{password}\").get(\"/found.txt\").body'",
    },
)  # fmt: skip
client(
    "Tcl (http)", "Debian: tcl", "echo 'puts [package require http]' | tclsh",
    {"HTTP": "echo 'package require http; http::config -proxyhost 127.0.0.1 -proxyport {port}; "
             "puts [http::data [http::geturl {page}]]' | tclsh"},
)  # fmt: skip
client(
    "LuaSocket", "Debian: lua5.3 lua-socket",
    "lua5.3 -e 'print((require \"socket\")._VERSION)'",
    {"HTTP": "lua5.3 -e 'local h = require \"socket.http\"; h.PROXY = \"http://{open}\"; "
             "io.write((h.request(\"{page}\")))'"},
)  # fmt: skip

# --- desktop libraries, by Debian's Python --------------------------------------------------------

QT = (
    "QT_QPA_PLATFORM=offscreen /usr/bin/python3 -c '\n"
    "from PyQt5.QtCore import QCoreApplication, QUrl\n"
    "from PyQt5.QtNetwork import *\n"
    "app = QCoreApplication([])\n"
    "manager = QNetworkAccessManager()\n"
    "manager.setProxy(QNetworkProxy(QNetworkProxy.{how}))\n"
    'reply = manager.get(QNetworkRequest(QUrl("{page}")))\n'
    "reply.finished.connect(lambda: (print(bytes(reply.readAll()).decode()), app.quit()))\n"
    "app.exec()\n'"
)
client(
    "Qt (QNetworkProxy)", "Debian: python3-pyqt5",
    "/usr/bin/python3 -c 'from PyQt5.QtCore import QT_VERSION_STR; print(QT_VERSION_STR)'",
    {
        "SOCKS5": QT.replace("{how}", "Socks5Proxy, \"127.0.0.1\", {port}"),
        "HTTP": QT.replace("{how}", "HttpProxy, \"127.0.0.1\", {port}"),
        "password": QT.replace("{how}",
            "Socks5Proxy, \"127.0.0.1\", {guarded}, \"{name}\", \"{password}\""),
    },
)  # fmt: skip
GLIB = (
    "/usr/bin/python3 -c '\n"
    "from gi.repository import Gio\n"
    "client = Gio.SocketClient()\n"
    'client.set_proxy_resolver(Gio.SimpleProxyResolver.new("{how}", None))\n'
    'stream = client.connect_to_host("localhost", {web}, None)\n'
    'stream.get_output_stream().write_all(b"GET /found.txt HTTP/1.0\\r\\n\\r\\n", None)\n'
    "while data := stream.get_input_stream().read_bytes(9999, None).get_data():\n"
    "    print(data.decode())\n'"
)
client(
    "GLib (Gio.SocketClient)", "Debian: python3-gi gir1.2-glib-2.0",
    "dpkg-query -W -f '${Version}' libglib2.0-0",
    {
        "SOCKS4a": GLIB.replace("{how}", "socks4a://{open}"),
        "SOCKS5": GLIB.replace("{how}", "socks5://{open}"),
        "HTTP": GLIB.replace("{how}", "http://{open}"),
        "password": GLIB.replace("{how}", "socks5://{login}"),
    },
)  # fmt: skip
TORRENT = (
    "/usr/bin/python3 -c '\n"
    "import hashlib, time, libtorrent as lt\n"
    'session = lt.session(dict(proxy_type={how}, proxy_hostname="127.0.0.1", '
    "proxy_peer_connections=True, proxy_tracker_connections=True, ssrf_mitigation=False, "
    "enable_dht=False, enable_lsd=False, enable_upnp=False, enable_natpmp=False, "
    "alert_mask=lt.alert.category_t.all_categories))\n"
    'info = lt.torrent_info(lt.bdecode(lt.bencode({b"announce": '
    'b"http://localhost:{web}/found.txt", b"info": {b"name": b"x", '
    'b"piece length": 16384, b"length": 1, b"pieces": b"0" * 20}})))\n'
    'session.add_torrent(dict(ti=info, save_path="{work}"))\n'
    "until = time.time() + 30\n"
    "seen = False\n"
    "while not seen and time.time() < until:\n"
    "    session.wait_for_alert(500)\n"
    "    seen = any(isinstance(a, (lt.tracker_error_alert, lt.tracker_reply_alert)) "
    "for a in session.pop_alerts())\n"
    'print("found" if seen else "")\n\''
)
client(
    "libtorrent", "Debian: python3-libtorrent",
    "/usr/bin/python3 -c 'import libtorrent; print(libtorrent.__version__)'",
    {
        "SOCKS5": TORRENT.replace("{how}", "lt.proxy_type_t.socks5, proxy_port={port}"),
        "HTTP": TORRENT.replace("{how}", "lt.proxy_type_t.http, proxy_port={port}"),
        "password": TORRENT.replace("{how}", "lt.proxy_type_t.socks5_pw, proxy_port={guarded}, "
                                    "proxy_username=\"{name}\", proxy_password=\"{password}\""),
    },
    "tried with a tracker; qBittorrent and Deluge are made of it",
)  # fmt: skip
PYCURL = (
    '/usr/bin/python3 -c \'import pycurl; c = pycurl.Curl(); c.setopt(c.URL, "{page}"); '
    'c.setopt(c.PROXY, "{how}"); c.perform()\''
)
client(
    "pycurl", "Debian: python3-pycurl",
    "dpkg-query -W -f '${Version}' python3-pycurl",
    {
        "SOCKS5": PYCURL.replace("{how}", "socks5h://{open}"),
        "password": PYCURL.replace("{how}", "socks5h://{login}"),
    },
)  # fmt: skip

# --- Python ---------------------------------------------------------------------------------------


def _python(code: str) -> str:
    return f"python -c '{code}'"


def _version(package: str) -> str:
    return f"python -c 'import importlib.metadata as m; print(m.version(\"{package}\"))'"


client(
    "urllib (Python)", "Python", "python --version",
    {"HTTP": _python("import urllib.request as u; print(u.build_opener(u.ProxyHandler("
                     "{\"http\": \"http://{open}\"})).open(\"{page}\").read())")},
)  # fmt: skip
REQUESTS = _python("import requests; print(requests.get(\"{page}\", "
                   "proxies={\"http\": \"{how}\"}).text)")  # fmt: skip
client(
    "requests", "PyPI: requests[socks]", _version("requests"),
    {
        "SOCKS4a": REQUESTS.replace("{how}", "socks4a://{open}"),
        "SOCKS5": REQUESTS.replace("{how}", "socks5h://{open}"),
        "HTTP": REQUESTS.replace("{how}", "http://{open}"),
        "HTTPS": _python("import requests; print(requests.get(\"{secure}\", verify=\"{ca}\", "
                         "proxies={\"https\": \"http://{open}\"}).text)"),
        "password": REQUESTS.replace("{how}", "socks5h://{login}"),
    },
    "`socks5h`",
)  # fmt: skip
URLLIB3 = _python("import urllib3.contrib.socks as s; print(s.SOCKSProxyManager(\"{how}\")"
                  ".request(\"GET\", \"{page}\").data)")  # fmt: skip
client(
    "urllib3", "PyPI: urllib3[socks]", _version("urllib3"),
    {
        "SOCKS5": URLLIB3.replace("{how}", "socks5h://{open}"),
        "password": URLLIB3.replace("{how}", "socks5h://{login}"),
    },
)  # fmt: skip
HTTPX = _python('import httpx; print(httpx.Client(proxy="{how}").get("{page}").text)')
client(
    "httpx", "PyPI: httpx[socks]", _version("httpx"),
    {
        "SOCKS5": HTTPX.replace("{how}", "socks5://{open}"),
        "HTTP": HTTPX.replace("{how}", "http://{open}"),
        "password": HTTPX.replace("{how}", "socks5://{login}"),
    },
)  # fmt: skip
client(
    "aiohttp", "PyPI: aiohttp", _version("aiohttp"),
    {
        what: "printf '%s\\n' 'import aiohttp, asyncio' 'async def main():' "
              "'    async with aiohttp.ClientSession(proxy=\"" + proxy + "\") as s:' "
              "'        async with s.get(\"{page}\") as a: print(await a.text())' "
              "'asyncio.run(main())' >a.py; python a.py"
        for what, proxy in {"HTTP": "http://{open}", "password": "http://{login}"}.items()
    },
    "SOCKS by aiohttp-socks",
)  # fmt: skip
client(
    "aiohttp-socks", "PyPI: aiohttp-socks", _version("aiohttp-socks"),
    {
        what: "printf '%s\\n' 'import aiohttp, aiohttp_socks, asyncio' 'async def main():' "
              "'    c = aiohttp_socks.ProxyConnector.from_url(\"" + proxy + "\", rdns=True)' "
              "'    async with aiohttp.ClientSession(connector=c) as s:' "
              "'        async with s.get(\"{page}\") as a: print(await a.text())' "
              "'asyncio.run(main())' >a.py; python a.py"
        for what, proxy in {
            "SOCKS4a": "socks4://{open}", "SOCKS5": "socks5://{open}",
            "HTTP": "http://{open}", "password": "socks5://{login}",
        }.items()
    },
    "`rdns=True`",
)  # fmt: skip
PYSOCKS = _python(
    'import socks; s = socks.socksocket(); s.set_proxy({how}); s.connect(("localhost", {web})); '
    's.sendall(b"GET /found.txt HTTP/1.0\\r\\n\\r\\n"); print(s.makefile().read())'
)
client(
    "PySocks", "PyPI: PySocks", _version("PySocks"),
    {
        "SOCKS4a": PYSOCKS.replace("{how}", "socks.SOCKS4, \"127.0.0.1\", {port}"),
        "SOCKS5": PYSOCKS.replace("{how}", "socks.SOCKS5, \"127.0.0.1\", {port}"),
        "HTTP": PYSOCKS.replace("{how}", "socks.HTTP, \"127.0.0.1\", {port}"),
        "password": PYSOCKS.replace("{how}", "socks.SOCKS5, \"127.0.0.1\", {guarded}, True, "
                                    "\"{name}\", \"{password}\""),
    },
)  # fmt: skip
client(
    "pip", "PyPI: pip", "python -m pip --version",
    {
        "SOCKS5": "python -m pip -q --proxy socks5h://{open} install --no-deps --index-url "
                  "http://localhost:{web}/simple --target t found && python t/found.py",
        "HTTP": "python -m pip -q --proxy http://{open} install --no-deps --index-url "
                "http://localhost:{web}/simple --target t found && python t/found.py",
        "password": "python -m pip -q --proxy http://{login} install --no-deps --index-url "
                    "http://localhost:{web}/simple --target t found && python t/found.py",
    },
    "`--proxy`; for SOCKS it needs PySocks where it is installed",
)  # fmt: skip
UV = (
    "ALL_PROXY={how} uv -q --no-config pip install --no-cache --python $(command -v python) "
    "--index-url http://localhost:{web}/simple --target t found && python t/found.py"
)
client(
    "uv", "PyPI: uv", "uv --version",
    {
        "SOCKS5": UV.replace("{how}", "socks5h://{open}"),
        "HTTP": UV.replace("{how}", "http://{open}"),
        "password": UV.replace("{how}", "socks5h://{login}"),
    },
    "by `ALL_PROXY`",
)  # fmt: skip
client(
    "yt-dlp", "PyPI: yt-dlp", "yt-dlp --version",
    {
        what: "yt-dlp -q --no-cache-dir --proxy " + proxy + " -o got "
              "http://localhost:{web}/found.mp4 && test -s got && echo found"
        for what, proxy in {
            "SOCKS4a": "socks4a://{open}", "SOCKS5": "socks5h://{open}", "HTTP": "http://{open}",
            "password": "socks5h://{login}",
        }.items()
    },
    "`--proxy`",
)  # fmt: skip
client(
    "Scrapy", "PyPI: Scrapy", _version("Scrapy"),
    {
        what: "printf '%s\\n' 'import scrapy' 'class S(scrapy.Spider):' '    name = \"s\"' "
              "'    async def start(self):' "
              "'        yield scrapy.Request(\"{page}\", meta={\"proxy\": \"" + proxy + "\"})' "
              "'    def parse(self, r): print(r.text)' >s.py; scrapy runspider -L ERROR s.py"
        for what, proxy in {"HTTP": "http://{open}", "password": "http://{login}"}.items()
    },
    "[guide](scraping.md)",
)  # fmt: skip
client(
    "pproxy", "PyPI: pproxy", "{built}/venv/bin/pip show pproxy | grep Version",
    {
        what: "at=127.0.0.1:$((20000 + RANDOM % 9000)); pproxy -l http://$at -r "
        + proxy + " >out 2>&1 & "
        "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.3; "
        "curl -sS --noproxy '' -x http://$at {page} && break; done; kill %1"
        for what, proxy in {"SOCKS5": "socks5://{open}", "HTTP": "http://{open}"}.items()
    },
    "gsocks as its upstream",
)  # fmt: skip

# --- WebSocket and DNS ----------------------------------------------------------------------------


def websocket(_: Places) -> Iterator[Mapping[str, object]]:
    with websocket_echo() as port:
        yield {"server": port}


WEBSOCKETS = _python(
    'import websockets.sync.client as c; s = c.connect("ws://localhost:{server}/", '
    'proxy="{how}"); s.send("found"); print(s.recv()); s.close()'
)
client(
    "websockets", "PyPI: websockets", _version("websockets"),
    {
        "SOCKS4a": WEBSOCKETS.replace("{how}", "socks4a://{open}"),
        "SOCKS5": WEBSOCKETS.replace("{how}", "socks5h://{open}"),
        "HTTP": WEBSOCKETS.replace("{how}", "http://{open}"),
        "password": WEBSOCKETS.replace("{how}", "socks5h://{login}"),
    },
    "uses the system's proxies by default",
    server=websocket,
)  # fmt: skip
WEBSOCKET_CLIENT = _python(
    'import websocket; s = websocket.create_connection("ws://localhost:{server}/", '
    'http_proxy_host="127.0.0.1", http_no_proxy=["none"], {how}); '
    's.send("found"); print(s.recv()); s.close()'
)
client(
    "websocket-client", "PyPI: websocket-client", _version("websocket-client"),
    {
        "SOCKS5": WEBSOCKET_CLIENT.replace("{how}",
            "proxy_type=\"socks5h\", http_proxy_port={port}"),
        "HTTP": WEBSOCKET_CLIENT.replace("{how}", "proxy_type=\"http\", http_proxy_port={port}"),
        "password": WEBSOCKET_CLIENT.replace("{how}", "proxy_type=\"socks5h\", "
            "http_proxy_port={guarded}, http_proxy_auth=(\"{name}\", \"{password}\")"),
    },
    "spares localhost unless `http_no_proxy` says else",
    server=websocket,
)  # fmt: skip

# --- Node -----------------------------------------------------------------------------------------

for _name, _package, _kinds, _code in (
    ("undici", "undici", ("HTTP", "password"),
     "const {request, ProxyAgent} = require('undici');"
     "request('{page}', {dispatcher: new ProxyAgent('{how}')})"
     ".then(async r => console.log(await r.body.text()))"),
    ("socks-proxy-agent (Node)", "socks-proxy-agent", ("SOCKS5", "SOCKS password"),
     "const {SocksProxyAgent} = require('socks-proxy-agent');"
     "require('http').get('{page}', {agent: new SocksProxyAgent('{how}')}, "
     "r => r.pipe(process.stdout))"),
    ("https-proxy-agent (Node)", "https-proxy-agent", ("HTTP", "password"),
     "const {HttpsProxyAgent} = require('https-proxy-agent');"
     "require('http').get('{page}', {agent: new HttpsProxyAgent('{how}')}, "
     "r => r.pipe(process.stdout))"),
    ("axios", "axios", ("HTTP", "password"),
     "const u = new URL('{how}'); require('axios').get('{page}', {proxy: {protocol: 'http', "
     "host: u.hostname, port: +u.port, auth: u.username ? {username: u.username, "
     "password: u.password} : undefined}}).then(r => console.log(r.data))"),
    ("got with hpagent", "got hpagent", ("HTTP", "password"),
     "import('got').then(async ({got}) => { const {HttpProxyAgent} = require('hpagent');"
     "console.log((await got('{page}', {agent: {http: new HttpProxyAgent({proxy: '{how}'})}})"
     ".text())) })"),
    ("node-fetch with proxy-agent", "node-fetch proxy-agent", ("SOCKS5", "HTTP"),
     "import('node-fetch').then(async ({default: fetch}) => { const {ProxyAgent} = "
     "require('proxy-agent'); console.log(await (await fetch('{page}', {agent: "
     "new ProxyAgent({getProxyForUrl: () => '{how}'})})).text()) })"),
):  # fmt: skip
    _how = {
        "HTTP": "http://{open}", "password": "http://{login}", "SOCKS5": "socks5h://{open}",
        "SOCKS password": "socks5h://{login}",
    }  # fmt: skip
    client(
        _name, f"npm: {_package}",
        "node -p 'require(\"{built}/node/node_modules/" + _package.split()[0]
        + "/package.json\").version'",
        {
            ("password" if kind == "SOCKS password" else kind):
            "cat >a.cjs <<'END'\n" + _code.replace("{how}", _how[kind]) + "\nEND\n"
            "ln -s {built}/node/node_modules . && node a.cjs"
            for kind in _kinds
        },
    )  # fmt: skip
client(
    "socks (Node)", "npm: socks",
    "node -p 'require(\"{root}/tests/node/node_modules/socks/package.json\").version'",
    {
        what: "cat >a.cjs <<'END'\n"
              "const {SocksClient} = require('{root}/tests/node/node_modules/socks');\n"
              "SocksClient.createConnection({proxy: {host: '127.0.0.1', " + how + "}, "
              "command: 'connect', destination: {host: 'localhost', port: {web}}})"
              ".then(({socket}) => { socket.pipe(process.stdout);"
              "socket.write('GET /found.txt HTTP/1.0\\r\\n\\r\\n') })\nEND\nnode a.cjs"
        for what, how in {
            "SOCKS4a": "type: 4, port: {port}", "SOCKS5": "type: 5, port: {port}",
            "password": "type: 5, port: {guarded}, userId: '{name}', password: '{password}'",
        }.items()
    },
    "BIND and UDP as well (tests/test_real_node.py)",
)  # fmt: skip
client(
    "npm", "Debian: npm", "npm --version",
    {
        "HTTP": "npm view found description --registry http://localhost:{web}/npm/ "
                "--proxy http://{open} --noproxy '' --cache {work}/c",
        "password": "npm view found description --registry http://localhost:{web}/npm/ "
                    "--proxy http://{login} --noproxy '' --cache {work}/c",
    },
    "`npm config set proxy`, `https-proxy`",
)  # fmt: skip

# --- Go, Rust, Java: built ------------------------------------------------------------------------

client(
    "Go (net/http)", "built: go", "go version",
    {
        "SOCKS5": "goclients http socks5h://{open} {page}",
        "HTTP": "goclients http http://{open} {page}",
        "password": "goclients http socks5h://{login} {page} "
                    "&& goclients http http://{login} {page}",
    },
    "programs of Go never send localhost to `HTTP_PROXY`",
)  # fmt: skip
client(
    "golang.org/x/net/proxy", "built: go", "grep -m1 x/net {built}/go.mod",
    {
        "SOCKS5": "goclients socks socks5://{open} {page}",
        "password": "goclients socks socks5://{login} {page}",
    },
)  # fmt: skip
for _name, _kinds in (  # type: ignore[assignment]
    ("reqwest", ("SOCKS4a", "SOCKS5", "HTTP", "password")),
    ("ureq", ("SOCKS5", "HTTP", "password")),
    ("tokio-socks", ("SOCKS5", "password")),
):  # fmt: skip
    _how = {
        "SOCKS4a": "socks4a://{open}", "SOCKS5": "socks5h://{open}", "HTTP": "http://{open}",
        "password": "socks5h://{login}",
    }  # fmt: skip
    if _name == "ureq":
        _how |= {"SOCKS5": "socks5://{open}", "password": "socks5://{login}"}
    client(
        f"{_name} (Rust)", "built: cargo",
        "grep -A1 'name = \"" + _name + "\"' {built}/Cargo.lock",
        {kind: f"rustclients {_name} {_how[kind]} " + "{page}" for kind in _kinds},
    )  # fmt: skip
CARGO = (
    "mkdir -p p/src c && cd p && echo 'fn main() {}' >src/main.rs && printf '%s\\n' '[package]' "
    "'name = \"p\"' 'version = \"0.1.0\"' 'edition = \"2021\"' '[dependencies]' "
    '\'found = {version = "1", registry = "r"}\' >Cargo.toml && '
    "CARGO_HOME={work}/c CARGO_HTTP_PROXY={how} "
    "CARGO_REGISTRIES_R_INDEX=sparse+http://localhost:{web}/cargo/ cargo -q generate-lockfile && "
    "grep found Cargo.lock"
)
client(
    "cargo", "Rust", "cargo --version",
    {
        what: CARGO.replace("{how}", how)
        for what, how in {
            "SOCKS5": "socks5h://{open}", "HTTP": "http://{open}", "password": "http://{login}",
        }.items()
    },
    "`http.proxy`",
)  # fmt: skip
for _name, _words in (
    ("java.net.Socket", ("SOCKS5", "password")),
    ("HttpURLConnection", ("SOCKS5", "HTTP")),
    ("java.net.http", ("HTTP",)),
    ("OkHttp", ("SOCKS5", "HTTP", "password")),
    ("Netty", ("SOCKS4a", "SOCKS5", "HTTP", "password")),
    ("Apache HttpClient", ("SOCKS5", "HTTP", "password")),
):  # fmt: skip
    _jar = {"OkHttp": "okhttp-jvm", "Netty": "netty-handler-proxy",
            "Apache HttpClient": "httpclient5"}.get(_name)  # fmt: skip
    client(
        _name + (" (Java)" if _name != "java.net.http" else ""),
        "built: mvn" if _jar else "Debian: default-jdk-headless",
        "ls {built}/java/lib | grep -m1 " + _jar if _jar else "java --version",
        {
            what: "java -cp '{built}/java/lib/*' {built}/java/Clients.java '" + _name + "' " + what
            + (" {guarded} {name} {password}" if what == "password" else " {port}")
            + " {page}"
            for what in _words
        },
        {
            "java.net.Socket": "offers a login always; names go to the proxy if unresolved",
            "java.net.http": "no SOCKS; asks for a password only after 407",
            "HttpURLConnection": "`-Dhttp.nonProxyHosts=`",
        }.get(_name, ""),
    )  # fmt: skip
