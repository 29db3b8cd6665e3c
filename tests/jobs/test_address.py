"""Where jobs are submitted to."""

from __future__ import annotations

import pytest

from raystage.errors import InputError
from raystage.jobs.address import jobs_address


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("http://10.0.0.1:8265/", {}, "http://10.0.0.1:8265"),
        ("https://ray.example/cluster", {"RAY_ADDRESS": "http://other:8265"}, "https://ray.example/cluster"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a:8265", "RAY_ADDRESS": "http://b:8265"}, "http://a:8265"),
        (None, {"RAY_ADDRESS": "http://b:8265"}, "http://b:8265"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),  # that is for `raystage run`
    ],
)
def test_the_option_counts_before_the_variables(given: str | None, environment: dict, address: str) -> None:
    assert jobs_address(given, environment) == address


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("10.0.0.1:6379", "http://10.0.0.1:8265"),
        ("10.0.0.1:8265", "http://10.0.0.1:8265"),
        ("ray://head:10001", "http://head:8265"),
        ("[fd00::1]:6379", "http://fd00::1:8265"),
        ("auto", "http://HOST:8265"),
        ("http://", "http://HOST:8265"),
    ],
)
def test_another_address_is_refused_with_the_one_that_is_right(given: str, right: str) -> None:
    with pytest.raises(InputError) as refused:
        jobs_address(given, {})
    assert refused.value.key == "--address"
    assert str(refused.value).endswith(right)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="RAY_ADDRESS: found a password") as refused:
        jobs_address(None, {"RAY_ADDRESS": "http://me:hunter2@head:8265"})
    assert "hunter2" not in str(refused.value)
