#!/usr/bin/env python3
"""Waits for the notice that this machine is to be taken away, on AWS or Google Cloud, and tells Ray.

raystage then has the workers of the stage save, leave and start again elsewhere. Ray's cluster launcher does not ask
for the notice by itself. AWS gives it 2 minutes before the end, Google Cloud 30 seconds. The launcher files start this
beside Ray on machines that can be taken away:

    nohup python cluster/launcher/spot_notice.py aws >/tmp/spot_notice.log 2>&1 &

It needs nothing but Python: Ray's images have no curl.
"""

import http.client
import os
import subprocess
import sys
import time
import urllib.request

SECONDS = float(os.environ.get("SPOT_POLL_SECONDS", "5"))
# The metadata server is never behind a proxy.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    """The answer of the metadata server; empty if there is none, or an error."""
    try:
        with DIRECT.open(urllib.request.Request(url, headers=headers, method=method), timeout=2) as answer:
            return answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        return ""


def aws() -> str:
    host = os.environ.get("SPOT_METADATA", "http://169.254.169.254")
    token = ask(f"{host}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    return token and ask(f"{host}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})


def gcp() -> str:
    host = os.environ.get("SPOT_METADATA", "http://metadata.google.internal")
    found = ask(f"{host}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return found if found == "TRUE" else ""


# What asks for the notice, and the seconds that are left when it is there.
CLOUDS = {"aws": (aws, 116), "gcp": (gcp, 29)}


def main() -> None:
    cloud = sys.argv[1] if len(sys.argv) == 2 else ""
    if cloud not in CLOUDS:
        print(f"spot_notice.py: found {' '.join(sys.argv[1:]) or 'nothing'}; expected aws or gcp", file=sys.stderr)
        sys.exit(2)
    notice, left = CLOUDS[cloud]
    while not (said := notice()):
        time.sleep(SECONDS)
    print(f"this machine is to be taken away: {said}", flush=True)
    if not drained(f"{cloud} takes this machine away", time.monotonic() + left):
        sys.exit("spot_notice.py: Ray could not be told")


def drained(why: str, end: float) -> bool:
    """Have Ray take nothing new on this node until `end`, when it is gone. Ray's head may be out of reach for a moment:
    so it is asked until it has heard."""
    command = ("ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", why)
    while (seconds := int(end - time.monotonic())) > 0:
        if subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=False).returncode == 0:
            return True
        time.sleep(1)
    return False


main()
