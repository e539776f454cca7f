"""Real servers of several languages, for what no server of ours can show: how others read what they get.

Each is started with a port and a file. It writes ``METHOD PATH`` of every request that it executes into the file, answers
``/early`` with 401 before it has read the body, and everything else with 200 and the word ``EXECUTED``.
"""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.harness import Workload, command_exists, eventually, free_port

FOLDER = Path(__file__).parent
NAMES = ("python", "node", "go", "java", "nginx")
_COMMANDS = {"python": sys.executable, "node": "node", "go": "go", "java": "java", "nginx": "nginx"}

_NGINX = """
daemon off; master_process off; pid {log}.pid;
events {{ worker_connections 64; }}
http {{
  log_format executed "$request_method $uri"; access_log {log} executed;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 EXECUTED; }}
    location = /early {{ return 401 no; }}
  }}
}}
"""


class RealServer:
    """One of `NAMES`, running; by itself or as a workload's."""

    def __init__(self, name: str, folder: Path, workload: Workload | None = None) -> None:
        self.port = free_port()
        self._log = folder / f"{name}-{self.port}.log"
        self._log.touch()
        command = self._command(name, folder)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = workload.start(*command, **quiet) if workload else subprocess.Popen(command, **quiet)
        eventually(self._listens, f"{name} listens")

    def _command(self, name: str, folder: Path) -> list[str]:
        if name == "nginx":
            configuration = folder / f"nginx-{self.port}.conf"
            configuration.write_text(_NGINX.format(folder=folder, port=self.port, log=self._log))
            return ["nginx", "-c", str(configuration), "-e", str(folder / "error.log")]
        starts = {
            "python": [sys.executable, str(FOLDER / "early.py")],
            "node": ["node", str(FOLDER / "early.js")],
            "java": ["java", "-XX:TieredStopAtLevel=1", "-Xmx64m", str(FOLDER / "Early.java")],
        }
        start = starts[name] if name in starts else [build_go(folder)]
        return [*start, str(self.port), str(self._log)]

    def _listens(self) -> bool:
        assert self._process.poll() is None, "the server has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    @property
    def executed(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def is_installed(name: str) -> bool:
    return name == "python" or command_exists(_COMMANDS[name])


def build_go(folder: Path) -> str:
    program = folder / "early-go"
    if not program.exists():
        environment = os.environ | {"GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
        command = ["go", "build", "-gcflags=all=-N -l", "-ldflags=-s -w", "-o", str(program), "."]
        subprocess.run(command, cwd=FOLDER / "go", env=environment, check=True, capture_output=True)
    return str(program)
