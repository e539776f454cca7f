"""The committed layouts of replies are what the protocol's definitions say, and are there for all that can be asked."""

import subprocess
import sys
from pathlib import Path

from parsers.kafka import generate_messages, messages
from parsers.kafka.echoes import ECHOES
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.messages import MESSAGES


def test_the_committed_file_is_what_the_generator_writes() -> None:
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "messages.py", "-"]
    made = subprocess.run(ruff, input=generate_messages.generated(), capture_output=True, text=True, check=True).stdout
    assert made == Path(messages.__file__).read_text(), "make layouts"


def test_every_request_that_can_be_read_can_be_answered_but_those_of_share_sessions() -> None:
    without = {api.name for key, api in REQUESTS.items() if key not in MESSAGES}
    assert without == {"ShareFetch", "ShareAcknowledge"}
    for key, known in MESSAGES.items():
        api = REQUESTS[key]
        assert (known.api, known.lowest, known.highest) == (api.name, api.layouts[0][0], api.layouts[-1][1])
        assert min(known.flexible, 99) == min(api.flexible, 99), api.name
        assert known.api in ECHOES


def test_an_agent_that_polices_no_kafka_does_not_load_them() -> None:
    """They are large. What has no Kafka rules imports the agent's commands and the policies, and no parser of Kafka."""
    loaded = "[name for name in sys.modules if name.startswith('parsers.kafka')]"
    script = f"import sys, proxy.worker, policies.load; print({loaded})"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert made.strip() == "[]"
