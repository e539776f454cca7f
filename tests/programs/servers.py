"""The programs that answer: one entry for each, with how it is started and what it needs.

A proxy has nothing to say by itself: it asks the origin (``origin.py``), which is policed, too. So it is a server to the test's
client and a client to the origin, and both halves of each call have their record.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench.contenders import envoy_binary
from tests.harness import ROOT, command_exists
from tests.programs.calls import Call

HERE = Path(__file__).parent
BUILT = ROOT / ".build" / "programs"  # by `make programs`


@dataclass(frozen=True)
class Place:
    """Where a program works."""

    folder: Path  # its own
    content: Path
    port: int
    origin: int  # the origin's port
    origin_socket: Path  # the same origin, where nothing is policed

    def config(self, text: str, name: str = "config") -> str:
        """A file made of a template with the names of this place."""
        path = self.folder / name
        path.write_text(Template(text).substitute(vars(self)))
        return str(path)


@dataclass(frozen=True)
class Program:
    """A server program. ``needs`` are commands, or files that `make programs` makes."""

    name: str
    command: Callable[[Place], list[str]]
    needs: tuple[str | Path, ...]
    quick: bool = False  # CI runs it; `make soak` runs all
    is_proxy: bool = False
    has_files: bool = False  # answers /down by itself
    keeps: bool = True  # connections, for the next call
    carried: bool = True  # its replies are such that the kernel can carry some
    splices: bool = False  # from sockets, so its workload must not be accelerated (docs/kernel-path.md)
    # Now and then takes the rest of a body that it did not want for a request, and answers it with 400: without an agent, too.
    misreads: bool = False

    def missing(self) -> str | None:
        """Why it cannot be started here."""
        return missing(self.needs)

    def asks_origin(self, call: Call) -> bool:
        """Whether this program asks the origin for its answer to ``call``."""
        own = self.has_files and call.target.startswith("/down/")
        return self.is_proxy and call.verdict == "ALLOWED" and not own


def missing(needs: tuple[str | Path, ...]) -> str | None:
    for need in needs:
        if isinstance(need, Path):
            if not need.exists():
                return f"{need.relative_to(ROOT)} is not there (make programs)"
        elif not command_exists(need):
            return f"{need} is not installed (make programs)"
    return None


# nginx: one configuration, and what differs

_NGINX = """
daemon off; master_process off; pid $folder/pid; error_log $folder/log;
events { worker_connections 256; }
http {
  access_log off; client_max_body_size 0; keepalive_requests 10000;
  client_body_temp_path $folder/body; proxy_temp_path $folder/proxy; fastcgi_temp_path $folder/fastcgi;
  uwsgi_temp_path $folder/uwsgi; scgi_temp_path $folder/scgi;
  upstream origin { server ORIGIN; keepalive 8; }
  proxy_http_version 1.1; proxy_set_header Connection "";
  server {
    listen 127.0.0.1:$port;
    OPTIONS
    location / { proxy_pass http://origin; }
  }
}
"""
_FILES = "location ~ ^/down/([0-9]+) { alias $content/$$1; }"


def _nginx(name: str, options: str = "", origin: str = "127.0.0.1:$origin", quick: bool = False) -> Program:
    text = _NGINX.replace("OPTIONS", options).replace("ORIGIN", origin)

    def command(place: Place) -> list[str]:
        return ["nginx", "-c", place.config(text), "-e", str(place.folder / "log")]

    return Program(name, command, ("nginx",), quick, origin.startswith("127."), has_files=_FILES in options)


# haproxy

_HAPROXY = """
global
  maxconn 256
  GLOBAL
defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  OPTION
listen matrix
  bind 127.0.0.1:$port
  server origin 127.0.0.1:$origin
"""


def _haproxy(name: str, option: str, everywhere: str = "", quick: bool = False, splices: bool = False) -> Program:
    text = _HAPROXY.replace("OPTION", option).replace("GLOBAL", everywhere)
    command = ["haproxy", "-db", "-f"]
    return Program(name, lambda place: [*command, place.config(text)], ("haproxy",), quick, is_proxy=True, splices=splices)


# httpd, Envoy, Caddy

_HTTPD = """
ServerRoot $folder
DefaultRuntimeDir $folder
PidFile $folder/pid
ErrorLog $folder/log
ServerName localhost
Listen 127.0.0.1:$port
User www-data
Group www-data
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
MaxKeepAliveRequests 0
KeepAliveTimeout 60
ProxyPass / http://127.0.0.1:$origin/
"""

_ENVOY = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: $port}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: matrix
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: origin, timeout: 0s}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: origin
    connect_timeout: 10s
    load_assignment:
      cluster_name: origin
      endpoints:
      - lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $origin}}}}]
"""

_CADDY = """
{
  admin off
  auto_https off
  persist_config off
  storage file_system $folder
}
http://127.0.0.1:$port, http://:$port {
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:$origin
}
"""


def _httpd(place: Place) -> list[str]:
    return ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", place.config(_HTTPD)]


def _envoy(place: Place) -> list[str]:
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [envoy_binary(), "-c", place.config(_ENVOY, "envoy.yaml"), *options]


def _caddy(place: Place) -> list[str]:
    return [str(BUILT / "caddy"), "run", "--config", place.config(_CADDY, "Caddyfile")]


# Servers that read the bodies themselves


def _go(mode: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        ends = [f"127.0.0.1:{port}" for port in (place.port, place.origin)]
        return [str(BUILT / "go-programs"), mode, *ends, str(place.content)]

    return command


def _node(place: Place) -> list[str]:
    return ["node", str(HERE / "node" / "server.js"), str(place.port), str(place.content)]


def _java(main: str, folder: str, *jars: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        path = ":".join(str(BUILT / each) for each in (folder, *jars))
        return ["java", "-XX:+UseSerialGC", "-Xmx256m", "-cp", path, main, str(place.port), str(place.content)]

    return command


def _python(module: str, *arguments: str) -> Callable[[Place], list[str]]:
    return lambda place: [sys.executable, "-m", module, *(Template(one).substitute(vars(place)) for one in arguments)]


_GUNICORN = ("-b", "127.0.0.1:$port", "-k", "gthread", "--threads", "8", "--keep-alive", "60", "--timeout", "60")


def _php(place: Place) -> list[str]:
    settings = ("post_max_size=0", "enable_post_data_reading=0", "memory_limit=256M")
    options = [word for setting in settings for word in ("-d", setting)]
    return [
        "env",
        f"CONTENT={place.content}",
        "php",
        *options,
        "-S",
        f"127.0.0.1:{place.port}",
        str(HERE / "php" / "index.php"),
    ]


_BY_GO, _BY_PYTHON = (BUILT / "go-programs",), (BUILT / "python",)
_SPLICES = "option splice-auto\n  option splice-request\n  option splice-response"

PROGRAMS = (
    _nginx("nginx", quick=True),
    _nginx("nginx-unix", origin="unix:$origin_socket"),
    _nginx("nginx-files", f"sendfile on; {_FILES} proxy_request_buffering off; proxy_buffering off;", quick=True),
    _nginx("nginx-aio", f"sendfile off; aio threads; {_FILES} client_body_in_file_only clean;"),
    Program("httpd", _httpd, ("apache2",), is_proxy=True),
    _haproxy("haproxy", "", "nosplice"),
    _haproxy("haproxy-splice", _SPLICES, quick=True, splices=True),
    Program("envoy", _envoy, _BY_PYTHON, is_proxy=True),
    Program("caddy", _caddy, (BUILT / "caddy",), is_proxy=True, misreads=True),
    Program("go", _go("server"), _BY_GO, quick=True),
    Program("go-proxy", _go("proxy"), _BY_GO, quick=True, is_proxy=True),
    Program("go-copy", _go("copy"), _BY_GO, is_proxy=True, splices=True),
    Program("node", _node, ("node",), quick=True),
    Program("jdk", _java("JdkServer", "java"), ("java", BUILT / "java" / "JdkServer.class"), quick=True),
    Program("jetty", _java("JettyServer", "jetty", "jars/*", "java"), ("java", BUILT / "jetty" / "JettyServer.class")),
    Program("tomcat", _java("TomcatServer", "tomcat", "jars/*", "java"), ("java", BUILT / "tomcat" / "TomcatServer.class")),
    Program("gunicorn", _python("gunicorn", *_GUNICORN, "tests.programs.python.wsgi:app('$content')"), _BY_PYTHON),
    Program("uvicorn", _python("tests.programs.python.asgi", "$port", "$content"), _BY_PYTHON),
    Program("aiohttp", _python("tests.programs.python.aio", "$port", "$content"), ()),
    Program("php", _php, ("php",), keeps=False, carried=False),
    Program("sockets", _python("tests.programs.origin", "$content", "$port"), ()),
)
