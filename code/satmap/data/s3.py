"""Requests to S3 and servers like it, signed with the user's settings.

GDAL and boto3 also ask an address within cloud machines for credentials, and GDAL follows
redirects. Here only the usual variables (``AWS_*``) and files (``~/.aws``) count, and nothing but
the bucket is contacted. Without credentials requests are not signed, which suits public buckets.
The signature is version 4:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import configparser
import hashlib
import hmac
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

PREFIX = "s3://"

_BUCKET = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_NOTHING = hashlib.sha256(b"").hexdigest()


def https_address(name: str) -> str:
    """Return the address of ``s3://bucket/key`` at the user's endpoint, by default Amazon's.

    Raises:
        ValueError: the name has no valid bucket or no key.
    """
    bucket, _, key = name[len(PREFIX) :].partition("/")
    # Other characters could name another host.
    if not _BUCKET.fullmatch(bucket) or not key:
        raise ValueError("it is not s3://BUCKET/KEY")
    path = quote(key, safe="/-_.~")
    scheme = "http" if _is_off("AWS_HTTPS") else "https"
    endpoint = next(
        filter(None, map(os.environ.get, ("AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3",
                                          "AWS_ENDPOINT_URL"))), "",
    )  # fmt: skip
    by_host = not _is_off("AWS_VIRTUAL_HOSTING") and "." not in bucket
    if endpoint:
        before, separator, host = endpoint.rstrip("/").rpartition("://")
        scheme = before if separator else scheme
        by_host = by_host and "AWS_VIRTUAL_HOSTING" in os.environ
    else:
        host = f"s3.{_region()}.amazonaws.com"
    return f"{scheme}://{bucket}.{host}/{path}" if by_host else f"{scheme}://{host}/{bucket}/{path}"


def signed_headers(address: str) -> dict[str, str]:
    """Return the headers that a GET request of an :func:`https_address` needs."""
    headers = {}
    if payer := os.environ.get("AWS_REQUEST_PAYER"):
        headers["x-amz-request-payer"] = payer
    key_id, secret, token = _credentials()
    if not key_id or not secret or _is_on("AWS_NO_SIGN_REQUEST"):
        return headers
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers |= {"x-amz-content-sha256": _NOTHING, "x-amz-date": time}
    if token:
        headers["x-amz-security-token"] = token
    parts = urlsplit(address)
    signed = dict(sorted({"host": parts.netloc, **headers}.items()))
    names = ";".join(signed)
    lines = "".join(f"{name}:{value.strip()}\n" for name, value in signed.items())
    request = "\n".join(("GET", parts.path, "", lines, names, _NOTHING))
    scope = f"{time[:8]}/{_region()}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(("AWS4-HMAC-SHA256", time, scope, digest))
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, "
        f"Signature={key.hex()}"
    )
    return headers


def _credentials() -> tuple[str, str, str]:
    """Return key id, secret and session token; empty where unknown."""
    names = "aws_access_key_id", "aws_secret_access_key", "aws_session_token"
    key_id, secret, token = (os.environ.get(name.upper(), "") for name in names)
    if key_id and secret:
        return key_id, secret, token
    key_id, secret, token = (
        _setting("AWS_SHARED_CREDENTIALS_FILE", "credentials", "", name) for name in names
    )
    return key_id, secret, token


def _region() -> str:
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or _setting("AWS_CONFIG_FILE", "config", "profile ", "region") or "us-east-1"


def _setting(variable: str, file: str, prefix: str, name: str) -> str:
    """Return a setting of the user's profile in a file of ``~/.aws``; "" without one."""
    # Path.home fails for users without a home, as in containers.
    path = Path(os.path.expanduser(os.environ.get(variable) or f"~/.aws/{file}"))  # noqa: PTH111
    profile = os.environ.get("AWS_PROFILE") or "default"
    section = profile if profile == "default" else prefix + profile
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, ValueError):
        return ""
    return parser.get(section, name, fallback="")


def _is_off(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("NO", "FALSE", "OFF", "0")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("YES", "TRUE", "ON", "1")
