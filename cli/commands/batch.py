"""`batch`: many requests from a file, through the API of an instance."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx

from cli import home as homes
from cli import instance, options
from cli.errors import CliError, UnreachableError, UsageError

POLL_SECONDS = 1.0
ENDED = ("completed", "failed", "cancelled", "expired")
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

_key = click.option(
    "--key", envvar="CANOPY_KEY", metavar="KEY", help="API key; default: $CANOPY_KEY."
)
_url = click.option("--api", metavar="URL", help="The API; default: the instance's that runs here.")
_id = click.argument("batch_id", metavar="ID")

Batch = dict[str, Any]


@click.command("submit")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--endpoint", type=click.Choice(ENDPOINTS), default=ENDPOINTS[0], show_default=True)
@click.option("--window", default="24h", show_default=True, help="How long it may take: 6h, 7d.")
@click.option("--wait", is_flag=True, help="Return when it has ended; 1 unless it is completed.")
@_key
@_url
@options.as_json
def submit(
    file: Path,
    endpoint: str,
    window: str,
    wait: bool,
    key: str | None,
    api: str | None,
    as_json: bool,
) -> int:
    """Answer all lines of a file in the background; print the batch."""
    with _client(key, api) as http:
        with file.open("rb") as content:
            form = {"purpose": "batch"}
            uploaded = _call(http, "POST", "/v1/files", data=form, files={"file": content})
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": endpoint,
            "completion_window": window,
        }
        batch = _call(http, "POST", "/v1/batches", json=body)
        while wait and batch["status"] not in ENDED:
            time.sleep(POLL_SECONDS)
            batch = _call(http, "GET", f"/v1/batches/{batch['id']}")
        _print(batch, as_json)
    return int(wait and batch["status"] != "completed")


@click.command("list")
@_key
@_url
@options.as_json
def list_batches(key: str | None, api: str | None, as_json: bool) -> None:
    """List my latest batches."""
    with _client(key, api) as http:
        page = _call(http, "GET", "/v1/batches")
    if as_json:
        click.echo(json.dumps(page["data"]))
        return
    for batch in page["data"]:
        click.echo(_line(batch))


@click.command("show")
@_id
@_key
@_url
@options.as_json
def show(batch_id: str, key: str | None, api: str | None, as_json: bool) -> None:
    """Show how far a batch is."""
    with _client(key, api) as http:
        _print(_call(http, "GET", f"/v1/batches/{batch_id}"), as_json)


@click.command("cancel")
@_id
@_key
@_url
@options.as_json
def cancel(batch_id: str, key: str | None, api: str | None, as_json: bool) -> None:
    """End a batch; what is answered is kept."""
    with _client(key, api) as http:
        _print(_call(http, "POST", f"/v1/batches/{batch_id}/cancel"), as_json)


@click.command("results")
@_id
@click.option("--errors", is_flag=True, help="The lines that were not answered.")
@_key
@_url
def results(batch_id: str, errors: bool, key: str | None, api: str | None) -> None:
    """Print the results of a batch that has ended, one a line."""
    with _client(key, api) as http:
        batch = _call(http, "GET", f"/v1/batches/{batch_id}")
        file = batch["error_file_id" if errors else "output_file_id"]
        if batch["status"] not in ENDED:
            raise CliError(f"The batch has not ended: it is {batch['status']}.")
        if file is None:
            return
        with http.stream("GET", f"/v1/files/{file}/content") as response:
            if not response.is_success:
                raise CliError(f"The file is not there any more ({response.status_code}).")
            for chunk in response.iter_bytes():
                click.echo(chunk, nl=False)


@contextlib.contextmanager
def _client(key: str | None, api: str | None) -> Iterator[httpx.Client]:
    if not key:
        raise UsageError("Which key? Give --key, or set CANOPY_KEY (./canopy key create).")
    url = api or str(instance.running(homes.read())["url"])
    headers = {"Authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            yield http
    except httpx.HTTPError as error:
        raise UnreachableError(f"The API at {url} does not answer: {error}") from error


def _call(http: httpx.Client, method: str, path: str, **request: Any) -> Batch:
    response = http.request(method, path, **request)
    try:
        document = response.json()
        if response.is_success:
            return dict(document)
        message = str(document["error"]["message"])
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(f"{path} answered {response.status_code}, not as it should.") from error
    raise CliError(f"{message} ({response.status_code})")


def _print(batch: Batch, as_json: bool) -> None:
    click.echo(json.dumps(batch) if as_json else _line(batch))
    for error in () if as_json else (batch.get("errors") or {}).get("data", ()):
        where = "" if error.get("line") is None else f"line {error['line']}: "
        click.echo(f"  {where}{error['message']}")


def _line(batch: Batch) -> str:
    counts = batch["request_counts"]
    done = f"{counts['completed']} of {counts['total']} answered, {counts['failed']} failed"
    return f"{batch['id']}  {batch['status']:<11}  {done}  {batch['endpoint']}"
