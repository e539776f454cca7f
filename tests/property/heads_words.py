"""Policies and request heads for the differential test of `policies.heads`."""

import json
from random import Random
from typing import Any

from policies.decide import Pair, PolicySet
from policies.load import Source, load

_Json = dict[str, Any]


def _pair(http: list[_Json] | None, egress: list[_Json] | None = None, port: _Json | None = None, **extra: Any) -> Pair:
    """The pair web to orders:8080 under a policy of orders' ingress and, if given, one of web's egress.

    ``port`` has further fields of the entries of ``toPorts``.
    """
    documents: list[_Json] = [
        {
            "apiVersion": "sluice.dev/v1",
            "kind": "Workload",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"cgroups": [f"/{name}"]},
        }
        for name in ("web", "orders")
    ]
    for name, direction, rules in (("orders", "ingress", http), ("web", "egress", egress)):
        if rules is not None:
            ports = {"ports": [{"port": "8080", "protocol": "TCP"}], "rules": {"http": rules}, **(port or {})}
            entry = {"toPorts": [ports]}
            spec = {"endpointSelector": {"matchLabels": {"app": name}}, direction: [entry], **extra}
            documents.append(
                {"apiVersion": "sluice.dev/v1", "kind": "ApiPolicy", "metadata": {"name": f"of-{name}"}, "spec": spec}
            )
    documents += extra.pop("more", [])
    policies = PolicySet(load([Source("heads.yaml", "\n---\n".join(map(json.dumps, documents)))]), 1)
    return policies.pair(policies.endpoint("web"), policies.endpoint("orders"), 8080)


def _value(name: str, **how: str) -> _Json:
    return {"name": name, **how}


# Every one of them has a table.
PAIRS: dict[str, Pair] = {
    "anything": _pair([{}]),
    "methods and paths": _pair(
        [{"method": "GET", "path": "/orders(/[0-9]+)?"}, {"method": "POST|PUT", "path": "/orders"}, {"path": "/[a-z]*"}]
    ),
    "shapes": _pair(
        [
            {"path": r"/(users|teams)/\d{1,4}(\?.*)?"},
            {"path": "(?i)/orders/[[:alpha:]_]+"},
            {"path": r"/v[12]/.*\.json"},
            {"path": "^/static/[^?]*$", "method": "GET|HEAD"},
            {"path": "/a(b|c+)*d?/?"},
            {"path": ".*[?]page=[0-9]+"},
        ]
    ),
    "prefixes and templates": _pair(
        [{"pathPrefix": "/api"}, {"pathPrefix": "/"}, {"pathTemplate": "/users/{id}/orders", "method": "DELETE"}]
    ),
    "template": _pair([{"pathTemplate": "/users/{id}/orders"}, {"pathTemplate": "/{any}"}]),
    "denials": _pair(
        [
            {"method": "GET|HEAD|POST"},
            {"deny": True, "pathPrefix": "/admin"},
            {"deny": True, "path": "/orders/[0-9]+"},
            {"deny": True, "path": ".*/secret", "method": "POST"},
            {"deny": True, "query": [{"name": "debug"}, {"name": "a b"}]},
            {"deny": True, "query": [_value("q", value="1")]},
            {"deny": True, "mode": "audit", "pathPrefix": "/v1"},
        ]
    ),
    "denials by header": _pair(
        [
            {"pathPrefix": "/orders"},
            {"path": "/users.*"},
            {"deny": True, "headers": ["X-Admin"], "pathPrefix": "/orders"},
            {"deny": True, "headers": [_value("X-Role", prefix="ad")]},
        ]
    ),
    "hosts": _pair(
        [{"host": r"orders(\.example)?(:\d+)?", "method": "GET"}, {"host": "[a-z]+[.]internal", "path": "/users/[^/]*"}]
    ),
    "denied hosts": _pair([{"host": ".*"}, {"deny": True, "host": ".*[.]internal"}]),
    "headers": _pair([{"path": "/orders", "headers": ["X-Role: admin"]}, {"path": "/users/.*", "headers": ["X-Token"]}]),
    "header values": _pair(
        [
            {"path": "/orders", "headers": [_value("X-Role", regex="[a-z]+( [a-z]+)?")]},
            {"path": "/admin.*", "headers": [_value("X-Role", prefix="adm"), "X-Token"]},
            {"path": "/users/7", "headers": ["Content-Type: application/json"]},
        ]
    ),
    "alternatives": _pair([{"headers": ["X-Role: admin"], "host": "orders"}, {"headers": ["X-Role: user"], "method": "GET"}]),
    "both sides": _pair(
        [{"path": "/orders.*"}, {"method": "GET"}],
        [{"host": "orders(:8080)?"}, {"headers": ["X-Token"], "method": "POST"}, {"deny": True, "pathPrefix": "/admin"}],
    ),
    "header actions": _pair(
        [
            {"pathPrefix": "/orders", "headerMatches": [{"name": "X-Role", "value": "admin", "mismatch": "LOG"}]},
            {"pathPrefix": "/users"},
            {"path": "/v1/.*", "headerMatches": [{"name": "X-Role", "value": "admin"}]},
        ]
    ),
    "default allow": _pair([{"deny": True, "pathPrefix": "/admin"}], enableDefaultDeny={"ingress": False}),
    "audit": _pair([{"path": "/orders.*"}, {"path": "/users.*", "mode": "audit"}], [{"method": "GET"}, {"mode": "audit"}]),
    "queries": _pair([{"path": "/orders", "query": [{"name": "q"}]}, {"path": "/users(/[0-9]+)?([?].*)?"}]),
    "bodies refused": _pair([{}], port={"bodilessMethods": "refuse"}),
    "bodies refused by method": _pair(
        [{"method": "GET|POST"}, {"method": "DELETE", "pathPrefix": "/orders"}, {"method": "POST", "path": "/v1.*"}],
        port={"bodilessMethods": "refuse"},
    ),
    "slashes": _pair(
        [{"pathPrefix": "/orders"}, {"path": "/users(/[0-9]+)?([?].*)?"}, {"deny": True, "pathPrefix": "/admin"}],
        port={"normalise": {"encodedSlash": "decode", "emptySegments": "merge"}},
    ),
    "methods": _pair([{"method": "[A-Za-z]+"}, {"deny": True, "method": "DELETE"}]),
    "not understood": _pair(
        [
            {"path": r"/orders\b.*"},
            {"path": "/users"},
            {"deny": True, "method": "POST", "path": r"/\Qadmin\E"},
            {"path": "/v1.*"},
        ]
    ),
}

METHODS = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
PATHS = [
    "/",
    "/orders",
    "/orders/1",
    "/orders/12345",
    "/orders/abc",
    "/orders/",
    "/admin",
    "/admin/users",
    "/administrators",
    "/users/7",
    "/users/7/orders",
    "/users",
    "/teams/42",
    "/v1/x.json",
    "/v2/list.json",
    "/v1/secret",
    "/api/v1/items",
    "/static/app.js",
    "/abcbccd",
    "/.well-known/health",
    "/a.b/..c/d...",
    "/healthz",
]
QUERIES = [
    "",
    "",
    "",
    "",
    "?page=1",
    "?q=1",
    "?",
    "?debug",
    "?a=b&c=/../d",
    "?x=a?b",
    "?page=12&sort=-id",
    "?a=b;q=1",
    "?a+b=1&debug=1",
]
HOSTS = [
    "orders",
    "orders:8080",
    "orders.example",
    "api.internal",
    "orders.prod.svc.cluster.local:8080",
    "127.0.0.1:8080",
    "a_b",
]
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
_TOKEN = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9." + "Zm9vYmFy" * 40 + ".c2lnbmF0dXJl"
# Field lines as these programs send them, HOST being where they put that field.
CLIENTS: dict[str, list[str]] = {
    "curl": ["HOST", "User-Agent: curl/8.5.0", "Accept: */*"],
    "wrk": ["HOST"],
    "hey": ["HOST", "User-Agent: hey/0.0.1", "Content-Type: text/html", "Accept-Encoding: gzip"],
    "requests": [
        "HOST",
        "User-Agent: python-requests/2.34.2",
        "Accept-Encoding: gzip, deflate, br",
        "Accept: */*",
        "Connection: keep-alive",
    ],
    "aiohttp": ["HOST", "Accept: */*", "Accept-Encoding: gzip, deflate", "User-Agent: Python/3.11 aiohttp/3.10.5"],
    "httpx": [
        "HOST",
        "Accept: */*",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "User-Agent: python-httpx/0.27.0",
    ],
    "go": [
        "HOST",
        "User-Agent: Go-http-client/1.1",
        "Accept-Encoding: gzip",
        "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ],
    "axios": [
        "Accept: application/json, text/plain, */*",
        "User-Agent: axios/1.7.7",
        "Accept-Encoding: gzip, compress, deflate, br",
        "HOST",
        "Connection: keep-alive",
    ],
    "undici": [
        "HOST",
        "connection: keep-alive",
        "accept: */*",
        "accept-language: *",
        "sec-fetch-mode: cors",
        "user-agent: node",
        "accept-encoding: gzip, deflate",
    ],
    "okhttp": [
        f"Authorization: Bearer {_TOKEN}",
        "HOST",
        "Connection: Keep-Alive",
        "Accept-Encoding: gzip",
        "User-Agent: okhttp/4.12.0",
    ],
    "java": [
        "User-Agent: Java/21.0.1",
        "HOST",
        "Accept: text/html, image/gif, image/jpeg, */*; q=0.2",
        "Connection: keep-alive",
    ],
    "apache": [
        "HOST",
        "Connection: Keep-Alive",
        "User-Agent: Apache-HttpClient/4.5.14 (Java/17.0.9)",
        "X-Request-ID: 5f0c1d7e",
    ],
    "chrome": [
        "HOST",
        "Connection: keep-alive",
        "Cache-Control: max-age=0",
        'sec-ch-ua: "Chromium";v="131", "Not_A Brand";v="24"',
        "sec-ch-ua-mobile: ?0",
        'sec-ch-ua-platform: "Linux"',
        "Upgrade-Insecure-Requests: 1",
        f"User-Agent: {AGENT}",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "Sec-Fetch-Site: none",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-User: ?1",
        "Sec-Fetch-Dest: document",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: en-GB,en;q=0.9",
        "Cookie: session=0123456789abcdef; theme=dark",
    ],
    "firefox": [
        "HOST",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Accept-Language: en-GB,en;q=0.5",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Connection: keep-alive",
        "Referer: http://orders.example/users",
        "Priority: u=0, i",
    ],
}
RULE_LINES = [
    "X-Role: admin",
    "X-Role: user",
    "X-Role: big admin",
    "x-role:admin ",
    "X-Role: other",
    "X-Token: abc",
    "X-Admin: 1",
    "Content-Type: application/json",
]
ODD_LINES = [
    "X-Token:",
    "DNT: 1",
    "Transfer-Encoding: chunked",
    "transfer-encoding: identity",
    "TRANSFER-ENCODING: chunked",
    "Transfer-Encoding : chunked",
    "Upgrade: websocket",
    "UPGRADE: h2c",
    "Connection: Upgrade",
    "Connection: close",
    "Connection: keep-alive, X-Role",
    "Connection: keep-alive",
    "Expect: 100-continue",
    "TE: trailers",
    "te: trailers",
    "Trailer: X-A",
    "Proxy-Connection: keep-alive",
    "Keep-Alive: timeout=5",
    "HTTP2-Settings: AAMAAABkAAQAAP__",
    "Host: other",
    "host: orders",
    "HOST: orders",
    "Host: ORDERS.",
    "Host: a..b",
    "Host: orders:0",
    "Host: [::1]:80",
    "Host: " + "a" * 300,
    "Content-Length: 5",
    "Content-Length: 0",
    "content-length: 000000000000012",
    "CONTENT-LENGTH: 5",
    "Content-Length: 1234567890123456",
    "Content-Length: +5",
    "Content-Length: 5, 5",
    "Content-Length: 5 ",
    "Content-Length:",
    " folded: line",
    "\tfolded",
    "No colon",
    ": no name",
    "Bad name: x",
    "X-Null: a\x00b",
    "X-Tab: a\tb",
    "X-High: caf\xe9",
    "X-Del: \x7f",
    "X: 1",
    "",
]
ODD_TARGETS = [
    "*",
    "http://orders/orders",
    "orders",
    "/orders/../admin",
    "/orders/..;/admin",
    "/orders//1",
    "/./orders",
    "/orders/.",
    "/orders/..?x",
    "/ord%65rs",
    "/orders%2F1",
    "/orders\\1",
    "/orders#1",
    "/orders/%2F/1",
    "/orders//..%2F..//admin",
    "/users?100%",
    "/users?a\\b",
    "https://orders/orders",
    "http://orders:80/orders",
    "/orders;x=1",
    "/admin;x/users",
    "//admin",
    "/users/7?/orders",
    "/users/a?b/orders",
    "/admin?debug",
    "/orders/1?x",
]


def plausible(random: Random, body: bool = False) -> bytes:
    """A head as some program sends it, sometimes with a header that rules name."""
    client = random.choice(sorted(CLIENTS))
    host = random.choice(HOSTS)
    lines = [f"Host: {host}" if line == "HOST" else line for line in CLIENTS[client]]
    added = {line.partition(":")[0].lower(): line for line in random.choices(RULE_LINES, k=random.choice([0, 0, 1, 1, 2, 3]))}
    for line in added.values():
        lines.insert(random.randint(0, len(lines)), line)
    method = random.choice(["POST", "PUT", "PATCH", "DELETE"] if body else METHODS)
    if body:
        lines.insert(random.randint(0, len(lines)), f"Content-Length: {random.choice([0, 1, 17, 4096, 10**9])}")
    start = f"{method} {random.choice(PATHS)}{random.choice(QUERIES)} HTTP/1.1"
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")


def hostile(random: Random) -> bytes:
    """A plausible head made odd, in lines or in bytes."""
    head = plausible(random, body=random.random() < 0.3)
    for _ in range(random.choice([1, 1, 2, 3])):
        head = random.choice(_CHANGES)(random, head)
    return head + random.choice([b"", b"", b"GET /admin HTTP/1.1\r\nHost: orders\r\n\r\n", b"\r\n", b"body"])


def _odd_line(random: Random, head: bytes) -> bytes:
    lines = head.split(b"\r\n")
    lines.insert(random.randint(1, max(1, len(lines) - 2)), random.choice(ODD_LINES).encode("latin-1"))
    return b"\r\n".join(lines)


def _odd_target(random: Random, head: bytes) -> bytes:
    words = head.split(b" ", 2)
    return b" ".join([words[0], random.choice(ODD_TARGETS).encode(), *words[2:]])


def _odd_start(random: Random, head: bytes) -> bytes:
    start = random.choice([b"get", b"delete", b"Head", b"CONNECT", b"TRACE", b"HEAD", b"GETT", b"", b"PURGE"])
    version = random.choice([b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1"])
    return start + head[head.find(b" ") :].replace(b"HTTP/1.1", version, 1)


def _line_twice(random: Random, head: bytes) -> bytes:
    lines = head.split(b"\r\n")
    lines.insert(random.randint(1, max(1, len(lines) - 2)), random.choice(lines))
    return b"\r\n".join(lines)


def _lines_shuffled(random: Random, head: bytes) -> bytes:
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    random.shuffle(lines)
    return b"\r\n".join([first, *lines, b"", b""])


def _case(random: Random, head: bytes) -> bytes:
    at = random.randrange(len(head))
    end = min(len(head), at + random.choice([1, 1, 5, 20]))
    return head[:at] + random.choice([bytes.upper, bytes.lower, bytes.swapcase])(head[at:end]) + head[end:]


def one_byte(random: Random, head: bytes) -> bytes:
    """One byte changed, added or taken away."""
    at = random.randrange(len(head))
    byte = random.choice(
        [bytes([random.randrange(256)]), random.choice([b"\r", b"\n", b" ", b":", b"/", b".", b"?", b"\t", b"\0"])]
    )
    return head[:at] + random.choice([byte + head[at + 1 :], byte + head[at:], head[at + 1 :]])


_CHANGES = [_odd_line, _odd_line, _odd_target, _odd_target, _odd_start, _line_twice, _lines_shuffled, _case, one_byte, one_byte]
