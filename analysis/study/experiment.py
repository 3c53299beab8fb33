"""The address at which a tracking server shows a study and its runs, if it is a server that a browser can open."""

import re
from urllib.parse import urlsplit

LONGEST_ADDRESS = 300

ADDRESS = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/#/experiments/[0-9]{1,20}")
"""An address of an experiment; it has no login, no query, and nothing that means something in Markdown or HTML."""

RUN = re.compile(r"[0-9A-Za-z]{1,64}")


def is_experiment(address: str) -> bool:
    """Tell whether an address, which may come from anyone, can be one of an experiment."""
    return len(address) <= LONGEST_ADDRESS and ADDRESS.fullmatch(address) is not None


def experiment_address(tracking_uri: str, experiment: str) -> str:
    """Return where a browser shows an experiment, without the login of the URI; empty if the URI is of no server."""
    try:
        parts = urlsplit(tracking_uri.strip())
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return ""
    found = f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path.rstrip('/')}/#/experiments/{experiment}"
    return found if is_experiment(found) else ""


def run_address(experiment: str, run: str) -> str:
    """Return where a browser shows a run of an experiment; empty if either has no address."""
    return f"{experiment}/runs/{run}" if is_experiment(experiment) and RUN.fullmatch(run) else ""


def is_run_of(experiment: str, address: str) -> bool:
    """Tell whether an address is that of a run of an experiment."""
    return address == run_address(experiment, address.rpartition("/")[2]) != ""
