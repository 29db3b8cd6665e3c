"""Which environment variables of the submitter a job gets. They are secrets, or go with secrets.

What is in `runtime_env.env_vars` is shown by the jobs API to everybody who may list jobs, and Ray writes it into its
logs. So these variables go another way: `cluster.job_variables` says how.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from raystage.errors import InputError
from raystage.safe_text import is_secret_name

_HUB = ("HF_TOKEN", "HF_ENDPOINT")
_WANDB = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT")
_AWS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
)  # fmt: skip


def sent_variables(
    environment: Mapping[str, str], named: Iterable[str], uris: Collection[str], wandb_mode: str
) -> dict[str, str]:
    """Those that the run may need, as far as they are set, and those that are named. uris: of the store, and of what
    the schedule reads. Raises InputError where a named one is not set."""
    used = [*_HUB]
    used += _WANDB if wandb_mode == "online" else ()
    used += _AWS if any(uri.startswith("s3://") for uri in uris) else ()
    named = tuple(named)
    for name in named:
        if "=" in name:
            problem = (
                f"found a value for {name.partition('=')[0]}; expected the name alone, and the value in the environment"
            )
            raise InputError(problem, key="--env")
        if name not in environment:
            raise InputError(f"found {name}, which is not set here; expected a variable that is", key="--env")
    return {name: environment[name] for name in dict.fromkeys([*used, *named]) if environment.get(name)}


def shown_secrets(env_vars: Mapping[str, str]) -> list[str]:
    """The names of variables of a runtime environment that look like secrets."""
    return [name for name in env_vars if is_secret_name(name)]
