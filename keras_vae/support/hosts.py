"""Finds out quickly whether hosts answer: libraries wait minutes for a silent one."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable

SECONDS = 5.0


def silent(urls: Iterable[str]) -> dict[str, str]:
    """Those of the addresses that cannot be reached, with the reason, within `SECONDS` for all together."""
    # In threads, because looking up a name has no timeout; daemons, so that none outlives the program.
    failures = dict.fromkeys(urls, f"no answer in {SECONDS:g} s")

    def attempt(url: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an answer, of whatever kind, is a connection
        except OSError as error:
            failures[url] = str(getattr(error, "reason", error))
            return
        failures[url] = ""

    threads = [threading.Thread(target=attempt, args=(url,), daemon=True) for url in failures]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {url: reason for url, reason in failures.items() if reason}
