#!/usr/bin/env bash
# Waits for the notice that this machine is to be taken away, on AWS or Google Cloud, and tells Ray.
#
# raystage then has the workers of the stage save, leave and start again elsewhere. Ray's cluster launcher does not ask
# for the notice by itself. AWS gives it 2 minutes before the end, Google Cloud 30 seconds. The launcher files start
# this beside Ray on machines that can be taken away:
#
#     nohup cluster/launcher/spot_notice.sh aws >/tmp/spot_notice.log 2>&1 &
set -euo pipefail

cloud=${1:?expected aws or gcp}
seconds=${SPOT_POLL_SECONDS:-5}

# Prints the notice if there is one.
aws() {
    local host=${SPOT_METADATA:-http://169.254.169.254} token
    token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$host/latest/api/token") || return 0
    curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$host/latest/meta-data/spot/instance-action" || true
}

gcp() {
    local host=${SPOT_METADATA:-http://metadata.google.internal}
    curl -sf -m 2 -H 'Metadata-Flavor: Google' "$host/computeMetadata/v1/instance/preempted" | grep TRUE || true
}

case $cloud in
aws) left=115 ;;
gcp) left=28 ;;
*)
    echo "spot_notice.sh: found $cloud; expected aws or gcp" >&2
    exit 2
    ;;
esac

until notice=$("$cloud") && [[ -n $notice ]]; do
    sleep "$seconds"
done
echo "this machine is to be taken away: $notice"
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "$cloud takes this machine away" \
    --deadline-remaining-seconds "$left"
