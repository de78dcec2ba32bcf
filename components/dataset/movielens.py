"""MovieLens from its ZIP, downloaded or at hand, into Parquet.

The data are for research with citation and must not be redistributed (see the README inside the ZIP), so they are
no part of the project. Formats: https://files.grouplens.org/datasets/movielens/ml-1m-README.txt and
ml-100k-README.txt.
"""

from __future__ import annotations

import http.client
import io
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from components.dataset.errors import UserError
from components.run import aside

Name = Literal["ml-1m", "ml-100k"]
Progress = Callable[[int, int | None], None]

BASE_URL = "https://files.grouplens.org/datasets/movielens"
CHUNK = 2**18
TIMEOUT_SECONDS = 30
#: A byte that no file of MovieLens holds, in place of the two-character separator that the parser cannot take.
SEPARATOR = "\x1f"

RATINGS = ("user_id", "movie_id", "rating", "timestamp")
#: Columns of ml-100k's u.item after the movie's id, title, two dates and address: one flag for each.
FLAGS = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True)
class _File:
    """One table inside the ZIP: its file, the separator there, and all of its columns in order."""

    name: str
    separator: str
    columns: tuple[str, ...]


FILES: dict[str, dict[str, _File]] = {
    "ml-1m": {
        "ratings": _File("ratings.dat", "::", RATINGS),
        "users": _File("users.dat", "::", ("user_id", "gender", "age", "occupation", "zip")),
        "movies": _File("movies.dat", "::", ("movie_id", "title", "genres")),
    },
    "ml-100k": {
        "ratings": _File("u.data", "\t", RATINGS),
        "users": _File("u.user", "|", ("user_id", "age", "gender", "occupation", "zip")),
        "movies": _File("u.item", "|", ("movie_id", "title", "released", "released_video", "address", *FLAGS)),
    },
}


def import_movielens(name: str, archive: Path | None, folder: Path, progress: Progress | None = None) -> Path:
    """Write ratings.parquet, users.parquet and movies.parquet into `folder`; all of them or none.

    Args:
        name: ml-1m or ml-100k.
        archive: The ZIP as GroupLens publishes it; the folder inside may have any name. Downloaded if None.
        folder: Where the three files are to lie; replaced if it is there.
        progress: Called with the bytes so far and in all (None where the server does not say) of a download.

    Returns:
        The folder.

    Raises:
        UserError: the name is unknown, there is no network, the ZIP is broken or lacks a file, or
            the folder cannot be written.
    """
    if name not in FILES:
        raise UserError(f"no MovieLens data '{name}'; write {' or '.join(FILES)}")
    if archive is None:
        with tempfile.TemporaryDirectory(prefix="tandem-") as place:
            archive = Path(place) / f"{name}.zip"
            _download(f"{BASE_URL}/{name}.zip", archive, progress or (lambda _done, _total: None))
            return _convert(name, archive, folder)
    return _convert(name, archive, folder)


def _download(url: str, path: Path, progress: Progress) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:  # noqa: S310
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress(file.tell(), total)
            done = file.tell()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url}: cannot be downloaded ({reason}); download it yourself and give it with --from"
        ) from None
    if total is not None and done != total:
        raise UserError(f"{url}: the download broke off after {done} of {total} bytes; try again")


def _convert(name: str, archive: Path, folder: Path) -> Path:
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; give the path of {name}.zip with --from, or leave it out")
    try:
        with zipfile.ZipFile(archive) as opened:
            tables = {
                table: _parse(archive, file, _content(archive, opened, file)) for table, file in FILES[name].items()
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: not a readable ZIP ({error}); download it again") from None
    if name == "ml-100k":
        tables["movies"] = _with_genres(tables["movies"])
    try:
        with aside(folder) as draft:
            draft.mkdir()
            for table, content in tables.items():
                pq.write_table(content, draft / f"{table}.parquet")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); set TANDEM_DATA to a folder of yours") from None
    return folder


def _content(archive: Path, opened: zipfile.ZipFile, file: _File) -> bytes:
    """The bytes of a file of this name in whichever folder; the shallowest, if there are several."""
    found = [entry for entry in opened.namelist() if PurePosixPath(entry).name == file.name and "__MACOSX" not in entry]
    if not found:
        raise UserError(f"{archive}: lacks the file {file.name}; give the ZIP as GroupLens publishes it")
    return opened.read(min(found, key=lambda entry: entry.count("/")))


def _parse(archive: Path, file: _File, content: bytes) -> pa.Table:
    """The file's columns; ids, codes and words as strings, rating and timestamp as int64.

    Raises:
        UserError: a row has other columns than it should, or a number is none.
    """
    content = content.replace(file.separator.encode(), SEPARATOR.encode())
    types = {name: pa.int64() if name in {"rating", "timestamp"} else pa.string() for name in file.columns}
    read = pyarrow.csv.ReadOptions(column_names=list(file.columns), encoding="latin-1")
    parse = pyarrow.csv.ParseOptions(delimiter=SEPARATOR, quote_char=False)
    convert = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
    try:
        table = pyarrow.csv.read_csv(io.BytesIO(content), read, parse, convert)
    except pa.ArrowInvalid as error:
        told = " ".join(str(error).replace(SEPARATOR, file.separator).split())
        raise UserError(f"{archive}: {file.name} is not as GroupLens publishes it: {told}") from None
    return pa.table({name: _trimmed(table[name]) for name in file.columns})


def _trimmed(column: Any) -> Any:
    """Without the spaces that end some titles."""
    return pc.utf8_trim_whitespace(column) if pa.types.is_string(column.type) else column


def _with_genres(movies: pa.Table) -> pa.Table:
    """ml-100k's movies with one column of genres, joined by '|' as in ml-1m, in place of the flags."""
    flags = np.stack([movies[name].to_numpy(zero_copy_only=False) == "1" for name in FLAGS], axis=1)
    genres = ["|".join(_chosen(row)) or None for row in flags]
    return movies.select(["movie_id", "title"]).append_column("genres", pa.array(genres, pa.string()))


def _chosen(flags: Sequence[Any]) -> list[str]:
    return [name for name, flag in zip(FLAGS, flags, strict=True) if flag]
