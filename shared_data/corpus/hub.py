"""A dataset of the Hugging Face hub by its name, through plain HTTP.

The hub keeps a parquet copy of every public dataset. `GET /api/datasets/<name>/parquet` answers

    {"<config>": {"<split>": ["https://…/0.parquet", "https://…/1.parquet", …]}}

and the files are downloaded one by one, only as far as `data.max_megabytes` needs, into `data.hub_cache`. A download that
was cut off continues where it stopped (`Range: bytes=N-`); a file carries its final name only when it is complete.

Level 1 calls `datasets.load_dataset(name, streaming=True)` for documents.

    v2 data --set data.source=roneneldan/TinyStories --set data.max_megabytes=20
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.documents import Document
from shared_data.corpus.readers import read_documents, read_records
from shared_data.errors import UserError, explain_os_error
from shared_data.progress import progress
from shared_data.settings import DataSettings

BLOCK = 1 << 18  # bytes between two updates of the progress bar
_ATTEMPTS = 4  # of one file; each continues where the one before stopped
_TIMEOUT = 30  # seconds without a byte


def hub_documents(settings: DataSettings, bad: BadRecords | None = None) -> Iterator[Document]:
    """Stream the documents of `data.source`, downloading its parquet files as they are needed.  bad: counts the rows."""
    bad = bad or BadRecords(settings.on_bad_record)
    for number, path in enumerate(_downloaded_files(settings)):
        for row, document in enumerate(read_documents(path, settings, False, bad)):
            yield replace(document, id=f"{settings.source}/{number}#{row}")


def hub_records(settings: DataSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the whole records of `data.source`, each with the words that name it in an error."""
    for path in _downloaded_files(settings):
        yield from read_records(path)


def _downloaded_files(settings: DataSettings) -> Iterator[Path]:
    """The parquet files of `data.source` in order, each downloaded when it is needed."""
    folder = Path(os.path.expanduser(settings.hub_cache)) / settings.source.replace("/", "--")
    for number, url in enumerate(list_parquet_files(settings)):
        path = folder / f"{_config_and_split(url)}-{number:05d}.parquet"
        download(url, path)
        yield path


def list_parquet_files(settings: DataSettings) -> list[str]:
    """Addresses of the parquet files of the wanted configuration and split."""
    name = settings.source
    url = f"{settings.hub_endpoint}/api/datasets/{urllib.parse.quote(name)}/parquet"
    with _open_url(url, name) as answer:
        try:
            configs: dict[str, dict[str, list[str]]] = json.loads(answer.read())
        except ValueError as error:
            raise UserError(f"{url} did not answer in JSON; check data.hub_endpoint") from error
    if not isinstance(configs, dict) or not all(isinstance(splits, dict) for splits in configs.values()):
        raise UserError(f"{url} did not answer with a list of files; check data.hub_endpoint")
    config = settings.hub_config or ("default" if "default" in configs else next(iter(configs), ""))
    if config not in configs:
        raise UserError(
            f"hub dataset {name!r} has no configuration {config!r}; set data.hub_config to one of {', '.join(configs)}"
        )
    # The hub converts only the first 5 GB of a large dataset, and calls that split partial-<split>.
    for split in (settings.hub_split, f"partial-{settings.hub_split}"):
        if configs[config].get(split):
            return configs[config][split]
    raise UserError(
        f"hub dataset {name!r} has no split {settings.hub_split!r}; set data.hub_split to one of {', '.join(configs[config])}"
    )


def download(url: str, path: Path) -> None:
    """Fetch a file unless it is there, continuing an earlier attempt."""
    if path.exists():
        return
    partial = path.with_suffix(path.suffix + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if _fetch(url, partial, path.name):
                    partial.replace(path)
                    return
            except (HTTPException, TimeoutError, ConnectionError):
                if attempt == _ATTEMPTS:
                    raise
    except (HTTPException, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"the download of {url} broke off ({error}); start again, it continues where it stopped"
        ) from error
    except OSError as error:
        raise explain_os_error(error, path) or error from error
    raise UserError(f"the download of {url} broke off; start again, it continues where it stopped")


def _fetch(url: str, partial: Path, description: str) -> bool:
    """Append what is missing to the partial file; whether it is complete then."""
    done = partial.stat().st_size if partial.exists() else 0
    with _open_url(url, url, {"Range": f"bytes={done}-"} if done else {}) as answer:
        if answer.status != 206:  # the server sends the whole file, wanted or not
            done = 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else 0
        with (
            open(partial, "ab" if done else "wb") as file,
            progress(total, f"download {description}", "bytes", done) as bar,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
                done += len(block)
    return not total or done == total


def _open_url(url: str, name: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    """Open an address; what the hub refuses becomes one line for the user."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "llm-from-scratch", **(headers or {})})
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
        return answer
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(
                f"hub dataset {name!r} does not exist, or is private or gated (HTTP {error.code}); check the name, or download its files yourself and set data.source to their folder"
            ) from error
        if error.code == 416 and headers:  # nothing left to send, or another file by now: from its beginning
            return _open_url(url, name)
        if error.code == 404:
            raise UserError(
                f"hub dataset {name!r} was not found, or has no parquet copy (HTTP 404); check the name, or set data.source to a local file"
            ) from error
        raise UserError(
            f"the hub answered HTTP {error.code} for {name!r}; try again later, or set data.source to a local file"
        ) from error
    except ValueError as error:
        raise UserError(f"{url} is no address ({error}); correct data.hub_endpoint") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"cannot reach {urllib.parse.urlsplit(url).netloc} ({reason}); check the connection, or set data.source to a local file"
        ) from error


def _config_and_split(url: str) -> str:
    """ "default-train" of https://…/parquet/default/train/0.parquet: a readable name for the cached file."""
    parts = urllib.parse.urlsplit(url).path.split("/")
    return "-".join(part for part in parts[-3:-1] if part)
