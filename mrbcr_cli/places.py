"""Where images lie: a path on a disk, or a URL that fsspec opens (s3://, gs://, az://, https://, memory://).

Invariant: text becomes a Place at one door, and a RemotePath behaves like the Path it stands for; FileNotFoundError
alone means that nothing is there, and whatever else goes wrong there is a RemoteError (an OSError) of one line.
"""

from __future__ import annotations

import errno
import glob
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, Literal, TypeAlias

from mrbcr_cli.errors import InputError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_MANGLED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "checksum")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")
_READ_ONLY = ("http", "https")
_WITH_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")
_PIECE_BYTES = 2**20


class RemoteError(OSError):
    """A remote place did not do what was asked; `strerror` says why in one line."""

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True)
class RemotePath:
    """A key below a URL, with the methods of `Path` that this tool uses. Made by `place`; nothing is kept open in it.

    Keys are literal: there are no links and no steps up, and a folder is there as long as a key lies below it.
    """

    url: str
    """Without a slash at its end."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | PurePath) -> RemotePath:
        return RemotePath(f"{self.url}/{name.as_posix() if isinstance(name, PurePath) else name}".rstrip("/"))

    @property
    def scheme(self) -> str:
        """What stands before the ://."""
        return self.url.partition("://")[0]

    @property
    def root(self) -> RemotePath:
        """The bucket or host."""
        head, _, rest = self.url.partition("://")
        return RemotePath(f"{head}://{rest.split('/')[0]}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.partition("://")[2].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The folder; of a bucket or host itself."""
        return self if self == self.root else RemotePath(self.url.rpartition("/")[0])

    @property
    def parents(self) -> tuple[RemotePath, ...]:
        """All folders upwards."""
        found: list[RemotePath] = []
        at = self
        while at.parent != at:
            at = at.parent
            found.append(at)
        return tuple(found)

    def resolve(self) -> RemotePath:
        """Itself."""
        return self

    def is_relative_to(self, other: object) -> bool:
        """Whether it is `other` or lies below it."""
        return self == other or other in self.parents

    def relative_to(self, other: object) -> PurePosixPath:
        """The way from `other` to here. Raises ValueError where there is none."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} does not lie below {other}")
        return PurePosixPath(self.url[len(str(other)) :].lstrip("/"))

    def facts(self) -> dict[str, Any] | None:
        """What the place says of the key; None where there is nothing. Raises RemoteError."""
        with _plainly(self.url):
            fs, key = self._found()
            fs.invalidate_cache()  # others write there too
            try:
                return dict(fs.info(key))
            except FileNotFoundError:
                return None

    def exists(self) -> bool:
        """Whether a key, or a folder, is there. Raises RemoteError."""
        return self.facts() is not None

    def is_file(self) -> bool:
        """Whether a key is there. Raises RemoteError."""
        return (self.facts() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Whether a key lies below. Raises RemoteError."""
        return (self.facts() or {}).get("type") == "directory"

    def lacks_bucket(self) -> bool:
        """Whether the bucket is missing, without which nothing can be written. Raises RemoteError."""
        return self.scheme in _WITH_BUCKETS and not self.root.exists()

    def iterdir(self) -> Iterator[RemotePath]:
        """The parts one level below. Raises FileNotFoundError, RemoteError."""
        with _plainly(self.url):
            fs, key = self._found()
            fs.invalidate_cache()
            names = [str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(key, detail=False)]
        return iter([self / name for name in names if name])

    def read_bytes(self, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes under the key, or those from `start` (below 0: from the end) up to `stop`, as far as there are any.

        Raises FileNotFoundError, RemoteError.
        """
        with _plainly(self.url):
            fs, key = self._found()
            try:
                if self.scheme in _READ_ONLY:
                    return _http_bytes(fs, key, start or 0, stop)
                return bytes(fs.cat_file(key, start=start, end=stop))
            except OSError as error:
                if "not satisfiable" in str(error):  # what S3 says to a range of an empty object
                    return b""
                raise

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The bytes under the key, read whole, as a file. Raises FileNotFoundError, RemoteError."""
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, data: bytes | memoryview) -> None:
        """Put bytes under the key, in one step where the place can (S3, GCS and Azure can). Raises RemoteError."""
        with _plainly(self.url, absent_is_error=True):
            fs, key = self._found()
            fs.pipe_file(key, bytes(data))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the key. Raises RemoteError, and FileNotFoundError unless that is `missing_ok`."""
        try:
            with _plainly(self.url):
                fs, key = self._found()
                try:
                    fs.rm_file(key)
                except KeyError as error:  # how memory says it; S3 says nothing
                    raise FileNotFoundError(key) from error
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self, keep: Sequence[RemotePath] = ()) -> None:
        """Remove every key below, but those of `keep`. Raises RemoteError."""
        with _plainly(self.url, absent_is_error=True):
            fs, key = self._found()
            fs.invalidate_cache()
            kept = {path._found()[1] for path in keep}
            try:
                gone = [name for name in fs.find(key) if name not in kept]
            except FileNotFoundError:
                return
            plain = [name for name in gone if not glob.has_magic(name)]
            if plain:
                fs.rm(plain)
            for name in set(gone) - set(plain):  # which `rm` would take for a pattern, of keys elsewhere too
                fs.rm_file(name)

    def stamp(self) -> tuple[int | None, str] | None:
        """Size, and what tells the bytes under the key from others; None where there is no such key.

        The place's own checksum, or else its time of change. Raises RemoteError where it keeps neither.
        """
        facts = self.facts()
        if facts is None or facts.get("type") != "file":
            return None
        for name in (*_TAGS, *_TIMES):
            if facts.get(name):
                return facts.get("size"), f"{name}={facts[name]}"
        raise RemoteError(errno.ENOTSUP, "the place tells neither a checksum nor a time of change; copy the store")

    def _found(self) -> tuple[Any, str]:
        """The file system and the key in it; fsspec keeps one file system a process, and another after a fork."""
        import fsspec

        fs, key = fsspec.url_to_fs(self.url)
        return fs, str(key)


Place: TypeAlias = Path | RemotePath


def place(text: str | Place) -> Place:
    """What a user's text names. Raises InputError for a URL that cannot be one of ours, or lacks a package."""
    if not isinstance(text, str):
        return text
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2].rstrip("/")
    if scheme in ("file", "local"):
        return Path(rest)
    if not rest.strip("/") or {".", ".."} & set(rest.split("/")) or "::" in text or "?" in rest or "#" in rest:
        raise InputError(f"{text}: is no plain URL such as s3://bucket/folder/name.ome.zarr; give that of the store")
    _check_known(text, scheme)
    return RemotePath(f"{scheme}://{rest}")


def is_remote(text: str | Place) -> bool:
    """Whether it names a URL that fsspec is to open."""
    return isinstance(place(text), RemotePath)


def is_writable(where: Place) -> bool:
    """Whether its kind of place can be written to at all."""
    return isinstance(where, Path) or where.scheme not in _READ_ONLY


def refuse_mangled(path: Place) -> None:
    """Refuse a URL that was taken for a path, whose double slash is gone. Raises InputError."""
    if isinstance(path, Path) and not path.exists() and path.parts and _MANGLED.fullmatch(path.parts[0]):
        raise InputError(f"{path}: URLs are written by mrbcr deconvolve and finish alone; give a path")


def _check_known(text: str, scheme: str) -> None:
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise InputError(
            f"{text}: needs a package that is not installed ({_line(error)}); for s3 and https: "
            "pip install 'mrbcr[remote]'"
        ) from error
    except ValueError as error:
        raise InputError(f"{text}: {_line(error)}; known are s3, gs, az, https, memory and others of fsspec") from error


@contextmanager
def _plainly(url: str, *, absent_is_error: bool = False) -> Iterator[None]:
    """Let what fsspec and the libraries below it raise come out as FileNotFoundError or RemoteError."""
    try:
        yield
    except FileNotFoundError as error:
        text = _line(error)
        if absent_is_error:  # where something is to be written nothing need be there, but for the bucket
            raise RemoteError(errno.ENOENT, text if "bucket" in text else f"no such place: {text}", url) from error
        raise FileNotFoundError(errno.ENOENT, text, url) from error
    except RemoteError:
        raise
    except PermissionError as error:
        raise RemoteError(errno.EACCES, f"no permission: {_line(error)}", url) from error
    except MemoryError:
        raise
    except Exception as error:  # botocore, aiohttp, google-auth, ...: each has a family of its own
        raise RemoteError(_code(error), _reason(error), url) from error


def _code(error: Exception) -> int | None:
    """The number of an OSError; an I/O error of a network may pass, unlike that of a disk."""
    code = error.errno if isinstance(error, OSError) else None
    return None if code == errno.EIO else code


def _reason(error: Exception) -> str:
    if type(error).__name__ == "NoCredentialsError":
        return (
            "no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true "
            "for public data"
        )
    return _line(error)


def _line(error: BaseException) -> str:
    """What an exception says, on one line."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split())[:300] or type(error).__name__


def _http_bytes(fs: Any, url: str, start: int, stop: int | None) -> bytes:
    """A range of what a server holds, and no more than that in memory, though it ignore ranges and lie about sizes."""
    from fsspec.asyn import sync

    if start < 0 or stop is None:
        size = fs.info(url).get("size")
        if size is None:
            raise RemoteError(errno.ENOTSUP, "the server does not tell the size", url)
        start, stop = max(0, start if start >= 0 else size + start), size
    if start >= stop:
        return b""

    async def fetch() -> bytes:
        session = await fs.set_session()
        options = {**fs.kwargs, "headers": {**fs.kwargs.get("headers", {}), "Range": f"bytes={start}-{stop - 1}"}}
        async with session.get(fs.encode_url(url), **options) as response:
            if response.status == 416:
                return b""
            fs._raise_not_found_for_status(response, url)
            skip = 0 if response.status == 206 else start
            found = bytearray()
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                dropped = min(skip, len(piece))
                skip -= dropped
                found += piece[dropped : dropped + stop - start - len(found)]
                if len(found) >= stop - start:
                    response.close()
                    break
            return bytes(found)

    return bytes(sync(fs.loop, fetch))
