"""The nightly batch: an ordinary program with ``requests``, which knows nothing of Sluice.

Reads "METHOD URL" lines, makes each call on one kept connection, and answers with the status, or with "refused".
"""

import sys

import requests

with requests.Session() as session:
    for line in sys.stdin:
        method, url = line.split()
        try:
            print(session.request(method, url, timeout=10).status_code, flush=True)
        except requests.ConnectionError:
            print("refused", flush=True)
