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
CLOUDS = {"aws": (aws, 115), "gcp": (gcp, 28)}


def main() -> None:
    cloud = sys.argv[1] if len(sys.argv) == 2 else ""
    if cloud not in CLOUDS:
        print(f"spot_notice.py: found {' '.join(sys.argv[1:]) or 'nothing'}; expected aws or gcp", file=sys.stderr)
        sys.exit(2)
    notice, left = CLOUDS[cloud]
    while not (said := notice()):
        time.sleep(SECONDS)
    print(f"this machine is to be taken away: {said}", flush=True)
    reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", f"{cloud} takes this machine away")
    os.execvp("ray", ["ray", "drain-node", *reason, "--deadline-remaining-seconds", str(left)])


main()
