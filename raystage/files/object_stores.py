"""What object stores need beyond pyarrow: no secrets in a URI, patient requests to S3, a bucket that exists."""

from __future__ import annotations

from urllib.parse import parse_qsl

from pyarrow import fs

from raystage.errors import InputError, StorageError
from raystage.files.retry import BRIEF, is_transient, retried
from raystage.safe_text import secret_in, without_secrets
from raystage.units import first_line

# Attempts of each single request by the client itself. `files.retry` then repeats the whole operation.
REQUEST_ATTEMPTS = 3
# The options of an S3 URI that pyarrow's constructor accepts too.
_S3_TEXTS = frozenset({"region", "scheme", "endpoint_override", "tls_ca_file_path"})
_S3_SWITCHES = frozenset({"allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open"})


def refuse_credentials(uri: str) -> None:
    """Raises InputError where a URI holds a secret.

    It would be printed, and kept in reports. And workers get the URI without it, so they could open nothing.
    """
    found = secret_in(uri)
    if found is not None:
        places = {"s3": "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws",
                  "gs": "the file that GOOGLE_APPLICATION_CREDENTIALS names"}  # fmt: skip
        where = places.get(uri.partition("://")[0].lower(), "the environment")
        problem = f"found {found} in the URI {without_secrets(uri)}"
        raise InputError(f"{problem}; expected it in {where}, on every node", key="store")


def with_backoff(system: fs.S3FileSystem, query: str) -> fs.S3FileSystem:
    """The same S3 with exponential back-off. As opened from a URI it asks again every 0.2 s, 30 times.

    query: the options of the URI. Where one of them can only be given in a URI, the file system is returned unchanged.
    """
    asked = dict(parse_qsl(query))
    if not set(asked) <= _S3_TEXTS | _S3_SWITCHES:
        return system
    switches = {name: asked.pop(name).lower() in ("1", "true") for name in _S3_SWITCHES & set(asked)}
    strategy = fs.AwsStandardS3RetryStrategy(max_attempts=REQUEST_ATTEMPTS)
    return fs.S3FileSystem(**{**asked, "region": system.region}, **switches, retry_strategy=strategy)


def check_bucket(system: fs.FileSystem, path: str, uri: str) -> None:
    """Raises InputError where the bucket of a path does not exist, StorageError where S3 does not answer.

    Without this check a missing bucket looks like an empty folder. uri: for messages.
    """
    bucket = path.partition("/")[0]
    if not bucket:
        raise InputError(f"{uri!r} names no bucket; expected s3://bucket/prefix", key="store")
    try:
        found = retried(lambda: system.get_file_info(path).type, BRIEF)
        if found == fs.FileType.NotFound:
            found = retried(lambda: system.get_file_info(bucket).type, BRIEF)
    except OSError as error:
        if is_transient(error):
            raise StorageError(f"{uri}: cannot be reached ({first_line(error)})") from None
        raise InputError(f"{uri!r} cannot be opened ({first_line(error)})", key="store") from None
    if found == fs.FileType.NotFound:
        raise InputError(f"no bucket {bucket!r}, which {uri!r} is in; expected one that exists", key="store")
