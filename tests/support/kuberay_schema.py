"""Makes kuberay.schema.json, beside this file: what KubeRay's resource definitions say of RayJob and RayCluster.

    git clone --branch v1.6.2 https://github.com/ray-project/kuberay
    python tests/support/kuberay_schema.py kuberay > tests/support/kuberay.schema.json

The definitions are 1.4 MB of YAML, most of it Kubernetes' own description of a pod, several times. What is left here is
the names and types of all fields, each object once. KubeRay is under the Apache License 2.0, Copyright The KubeRay
Authors. v1.6.2 is the oldest version that the files in cluster/kuberay are for.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

VERSION = "v1.6.2"
DEFINITIONS = "ray-operator/config/crd/bases"
KINDS = {"RayJob": "rayjobs", "RayCluster": "rayclusters"}
KEPT = ("type", "enum", "required", "items", "anyOf", "additionalProperties", "x-kubernetes-int-or-string")
WORTH_SHARING_BYTES = 150


def derived(checkout: Path) -> dict[str, Any]:
    """One JSON schema for both kinds; fields that it does not name are refused."""
    shared: dict[str, Any] = {}
    kinds = {}
    for kind, name in KINDS.items():
        text = (checkout / DEFINITIONS / f"ray.io_{name}.yaml").read_text(encoding="utf-8")
        versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
        (whole,) = (one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1")
        properties = {"spec": _reduced(whole["properties"]["spec"], shared)}
        kinds[kind] = {"type": "object", "properties": properties, "required": ["spec"]}
    return {
        "$comment": f"Derived from KubeRay {VERSION} (Apache License 2.0) by tests/support/kuberay_schema.py",
        "$defs": {**shared, **kinds},
    }


def _reduced(schema: Any, shared: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_reduced(one, shared) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _reduced(schema[key], shared) for key in KEPT if key in schema}
    if found.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        found["properties"] = {name: _reduced(one, shared) for name, one in schema["properties"].items()}
        found["additionalProperties"] = False
    text = json.dumps(found, sort_keys=True)
    if len(text) < WORTH_SHARING_BYTES:
        return found
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    shared[name] = found
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    json.dump(derived(Path(sys.argv[1])), sys.stdout, separators=(",", ":"), sort_keys=True)
    print()
