"""Images made to do harm: what they claim, link to or expand to is refused in one line before it costs anything.

No file outside the image is read, and no chunk, strip or page takes more memory than its pixels.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from numcodecs import Blosc, get_codec

from mrbcr_cli import intensity
from mrbcr_cli.cli import run
from mrbcr_cli.images.omezarr_guard import expands_beyond
from tests.helpers import spots
from tests.refusals import Said, planned, refused

# --- OME-Zarr --------------------------------------------------------------------------------------------------------


def store(folder: Path, data: np.ndarray[Any, Any], version: int = 2, **how: Any) -> Path:
    """An array at `folder`, as others write it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.create_array(folder, data=data, zarr_format=version, chunks=data.shape, **how)  # type: ignore[arg-type]
    return folder


def test_chunks_that_are_links_out_of_the_store_are_refused(tmp_path: Path, capsys: Said) -> None:
    """A link may show any file of the user as pixels to whoever gets the output. The store itself may be a link."""
    root = store(tmp_path / "a.zarr", spots((32, 32)), compressors=None)
    secret = tmp_path / "secret"
    (root / "0.0").rename(secret)
    (root / "0.0").symlink_to(secret)
    assert "leads out of the store" in refused(capsys, *planned(tmp_path, root))
    (root / "0.0").unlink()
    (root / "inside").write_bytes(secret.read_bytes())
    (root / "0.0").symlink_to("inside")
    (tmp_path / "link.zarr").symlink_to(root)
    assert run([str(a) for a in planned(tmp_path, tmp_path / "link.zarr")]) == 0


@pytest.mark.parametrize("document", ["plate", "well", "series"])
def test_paths_of_plates_and_containers_may_not_leave_the_store(tmp_path: Path, capsys: Said, document: str) -> None:
    root = tmp_path / "a.zarr"
    outside = "../../etc"
    found = {
        "plate": {".zattrs": {"plate": {"wells": [{"path": outside}]}}},
        "well": {".zattrs": {"well": {"images": [{"path": outside}]}}},
        "series": {".zattrs": {"bioformats2raw.layout": 3}, "OME/.zattrs": {"series": [outside]}},
    }[document]
    for name, content in {".zgroup": {"zarr_format": 2}, "OME/.zgroup": {"zarr_format": 2}, **found}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    assert "outside the store" in refused(capsys, "info", root)


@pytest.mark.parametrize("name", [".zattrs", "0.0"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_in_a_store_do_not_stall_the_run(tmp_path: Path, capsys: Said, name: str, kind: str) -> None:
    root = store(tmp_path / "a.zarr", spots((32, 32)))
    (root / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(root / name)
    else:
        (root / name).symlink_to("/dev/zero")
    assert name in refused(capsys, *planned(tmp_path, root))


BOMB = bytes(2**26)
BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(BOMB),
    "zlib": lambda: zlib.compress(BOMB),
    "bz2": lambda: bz2.compress(BOMB),
    "lzma": lambda: lzma.compress(BOMB),
    "zstd": lambda: bytes(imagecodecs.zstd_encode(BOMB)),
    "lz4": lambda: bytes(get_codec({"id": "lz4"}).encode(BOMB)),
    "blosc": lambda: bytes(Blosc().encode(BOMB)),
}


@pytest.mark.parametrize("codec", sorted(BOMBS))
def test_chunks_that_expand_beyond_their_pixels_are_refused(tmp_path: Path, capsys: Said, codec: str) -> None:
    root = store(tmp_path / "a.zarr", spots((32, 32)), compressors=get_codec({"id": codec}))
    assert run([str(a) for a in planned(tmp_path, root)]) == 0
    capsys.readouterr()
    (root / "0.0").write_bytes(BOMBS[codec]())
    assert "bomb" in refused(capsys, *planned(tmp_path, root))


def test_bombs_are_seen_behind_a_first_harmless_member() -> None:
    """The last four bytes of a gzip state the size of its last member alone."""
    chunk = gzip.compress(b"x") + gzip.compress(BOMB) + gzip.compress(b"x")
    assert expands_beyond("gzip", chunk, 2**20)
    assert not expands_beyond("gzip", chunk, 2**27)
    assert not expands_beyond("gzip", gzip.compress(b"x" * 100)[:-9], 2**20)  # cut short: the decoder will say so


def test_data_compressed_twice_are_refused(tmp_path: Path, capsys: Said) -> None:
    root = store(tmp_path / "a.zarr", spots((32, 32)))
    document = json.loads((root / ".zarray").read_text())
    document |= {"filters": [{"id": "zlib", "level": 1}], "compressor": {"id": "gzip", "level": 1}}
    (root / ".zarray").write_text(json.dumps(document))
    assert "compressed more than once" in refused(capsys, "info", root)


@pytest.mark.parametrize("shape", [[10**6, 10**6], [10**6, 1000, 1000]])
def test_arrays_that_claim_a_million_million_pixels_cost_a_bounded_look(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch, shape: list[int]
) -> None:
    monkeypatch.setattr(intensity, "SEARCHED_PIXELS", 2**20)
    monkeypatch.setattr(intensity, "SEARCHED_PIECES", 16)
    monkeypatch.setattr(intensity, "EXACT_PIXELS", 2**18)
    root = store(tmp_path / "a.zarr", np.ones((16, 16), "u1"))
    chunks = [min(size, 1024) for size in shape]
    document = json.loads((root / ".zarray").read_text()) | {"shape": shape, "chunks": chunks}
    (root / ".zarray").write_text(json.dumps(document))
    (root / "0.0").unlink()
    assert run(["info", str(root)]) == 0
    assert run([str(a) for a in planned(tmp_path, root)]) == 0


@pytest.mark.parametrize(("axis", "count"), [("c", 10**9), ("t", 10**12), ("z", 10**9)])
def test_endless_channels_times_and_planes_are_refused(tmp_path: Path, capsys: Said, axis: str, count: int) -> None:
    root = store(tmp_path / "a.zarr", np.ones((1, 16, 16), "u1"))
    document = json.loads((root / ".zarray").read_text()) | {"shape": [count, 16, 16]}
    (root / ".zarray").write_text(json.dumps(document))
    said = refused(capsys, *planned(tmp_path, root, "--axes", f"{axis}yx"))
    assert str(count) in said


def test_chunks_that_fit_no_memory_are_refused(tmp_path: Path, capsys: Said) -> None:
    root = store(tmp_path / "a.zarr", spots((32, 32)))
    document = json.loads((root / ".zarray").read_text()) | {"shape": [10**6] * 2, "chunks": [10**6] * 2}
    (root / ".zarray").write_text(json.dumps(document))
    assert "decoded whole" in refused(capsys, "info", root)


@pytest.mark.parametrize("nested", ["[" * 10**5, '{"a":' * 10**5, "[" * 10**5 + "]" * 10**5])
def test_documents_nested_without_end_are_refused(tmp_path: Path, capsys: Said, nested: str) -> None:
    root = store(tmp_path / "a.zarr", spots((8, 8)), version=3)
    (root / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": ' + nested + "}")
    assert "not valid JSON" in refused(capsys, "info", root)


# --- TIFF ------------------------------------------------------------------------------------------------------------


def tiff(path: Path, tags: dict[int, tuple[int, int]], data: bytes = b"", next_ifd: int = 0) -> Path:
    """A classic TIFF of one directory at byte 8; `tags`: code -> (type, value); value None is where the data begin."""
    at = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", code, kind, 1, at if value < 0 else value) for code, (kind, value) in sorted(tags.items())
    )
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", next_ifd) + data)
    return path


def greyscale(side: int, compression: int, count: int, rows: int | None = None) -> dict[int, tuple[int, int]]:
    """Tags of one strip of 8-bit pixels, its data at the end of the file."""
    return {
        256: (4, side), 257: (4, side), 258: (3, 8), 259: (3, compression), 262: (3, 1), 273: (4, -1), 277: (3, 1),
        278: (4, rows or side), 279: (4, count),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (greyscale(10**6, 1, 10), "truncated"),
        (greyscale(10**6, 8, 10), "decoded whole"),
        (greyscale(10**6, 50000, 10), "decoded whole"),
        (greyscale(10**6, 5, 10, rows=1), "damaged|truncated"),
    ],
)
def test_tiffs_that_claim_a_million_million_pixels_are_refused(
    tmp_path: Path, capsys: Said, tags: dict[int, tuple[int, int]], words: str
) -> None:
    import re

    assert re.search(words, refused(capsys, "info", tiff(tmp_path / "a.tif", tags, bytes(10))))


@pytest.mark.parametrize(
    ("code", "bomb"),
    [
        (8, zlib.compress(BOMB)),
        (50000, bytes(imagecodecs.zstd_encode(BOMB))),
        (34925, lzma.compress(BOMB)),
        (32773, bytes(imagecodecs.packbits_encode(np.zeros((1, 2**20), np.uint8)))),
    ],
)
def test_strips_that_expand_beyond_their_pixels_are_refused_or_cut(
    tmp_path: Path, capsys: Said, code: int, bomb: bytes
) -> None:
    """The decoders are told how much to make; some stop there, some call it an error. None makes more."""
    import tracemalloc

    path = tiff(tmp_path / "a.tif", greyscale(16, code, len(bomb)), bomb)
    tracemalloc.start()
    ended = run(["info", str(path)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ended in (0, 2)
    assert peak < len(BOMB) // 4
    assert "unexpected" not in capsys.readouterr().err


def test_pictures_in_a_strip_that_state_another_size_are_refused(tmp_path: Path, capsys: Said) -> None:
    jpeg = bytearray(imagecodecs.jpeg_encode(np.zeros((16, 16), np.uint8)))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    j2k = bytearray(imagecodecs.jpeg2k_encode(np.zeros((16, 16), np.uint8), codecformat="J2K"))
    at = j2k.index(b"\xff\x4f\xff\x51")
    j2k[at + 8 : at + 16] = struct.pack(">II", 10**6, 10**6)
    for code, data in ((7, jpeg), (34712, j2k)):
        path = tiff(tmp_path / "a.tif", greyscale(16, code, len(data)), bytes(data))
        assert "claims" in refused(capsys, "info", path)


def test_chains_of_pages_that_come_back_later_are_refused(tmp_path: Path, capsys: Said) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", spots((5, 16, 16)), photometric="minisblack", metadata=None, compression="zlib"
    )
    data = bytearray((tmp_path / "a.tif").read_bytes())
    offsets = [8]
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        offsets = [page.offset for page in tif.pages]
    tags = struct.unpack_from("<H", data, offsets[4])[0]
    struct.pack_into("<I", data, offsets[4] + 2 + 12 * tags, offsets[2])
    (tmp_path / "a.tif").write_bytes(data)
    assert "circle" in refused(capsys, "info", tmp_path / "a.tif")


def test_a_page_that_is_its_own_sub_page_ends(tmp_path: Path, capsys: Said) -> None:
    path = tiff(tmp_path / "a.tif", greyscale(16, 1, 256) | {330: (4, 8)}, bytes(256))
    assert run(["info", str(path)]) in (0, 2)
    assert "unexpected" not in capsys.readouterr().err


def ome(path: Path, body: str, **more: Any) -> Path:
    """An OME-TIFF of one plane whose XML has `body`."""
    xml = f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{body}</OME>'
    tifffile.imwrite(path, spots((16, 16)), metadata=None, description=xml, photometric="minisblack", **more)
    return path


def pixels_xml(inside: str = '<TiffData IFD="0"/>', **changed: object) -> str:
    values = {"DimensionOrder": "XYZCT", "Type": "uint16", "SizeX": 16, "SizeY": 16, "SizeZ": 1, "SizeC": 1, "SizeT": 1}
    attributes = " ".join(f'{key}="{value}"' for key, value in (values | changed).items())
    return f'<Image ID="Image:0"><Pixels ID="Pixels:0" {attributes}>{inside}</Pixels></Image>'


@pytest.mark.parametrize(
    "body",
    [
        pixels_xml(SizeZ=10**9),
        pixels_xml(SizeX=10**6, SizeY=10**6),
        pixels_xml(SizeT="many"),
        pixels_xml('<TiffData IFD="0" PlaneCount="999999999"/>'),
        pixels_xml('<TiffData IFD="0" FirstZ="-1"/>'),
        pixels_xml() + '<StructuredAnnotations><XMLAnnotation ID="A" Namespace="x/modulo"><Value><Modulo><ModuloAlongT '
        'Type="lifetime" Start="0" End="1e12" Step="1e-3"/></Modulo></Value></XMLAnnotation></StructuredAnnotations>',
    ],
)
def test_planes_that_ome_xml_claims_and_no_file_could_hold_are_refused(tmp_path: Path, capsys: Said, body: str) -> None:
    assert "damaged" in refused(capsys, "info", ome(tmp_path / "a.ome.tif", body))


@pytest.mark.parametrize("name", ["../secret.tif", "/etc/passwd", "C:\\secret.tif", "..\\secret.tif"])
def test_files_that_ome_xml_names_outside_its_folder_are_refused(tmp_path: Path, capsys: Said, name: str) -> None:
    two = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{n}">urn:uuid:{c}</UUID></TiffData>'
        for c, n in enumerate(("a.ome.tif", name))
    )
    (tmp_path / "in").mkdir()
    path = ome(tmp_path / "in" / "a.ome.tif", pixels_xml(two, SizeC=2))
    assert "outside its folder" in refused(capsys, "info", path)
    path = ome(tmp_path / "in" / "b.ome.tif", f'<BinaryOnly MetadataFile="{name}" UUID="urn:uuid:1"/>')
    assert "outside its folder" in refused(capsys, "info", path)


LAUGHS = '<!DOCTYPE OME [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE OME [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("doctype", [LAUGHS, EXTERNAL])
def test_entities_in_a_companion_file_are_refused_too(tmp_path: Path, capsys: Said, doctype: str) -> None:
    (tmp_path / "set.companion.ome").write_text(f'<?xml version="1.0"?>{doctype}<OME>&a;</OME>')
    path = ome(tmp_path / "a.ome.tif", '<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:1"/>')
    assert "unsafe" in refused(capsys, "info", path)


def test_offsets_that_are_no_whole_numbers_are_refused(tmp_path: Path, capsys: Said) -> None:
    tags = greyscale(16, 8, 10) | {273: (11, struct.unpack("<I", struct.pack("<f", 100.5))[0])}
    assert "whole number" in refused(capsys, "info", tiff(tmp_path / "a.tif", tags, bytes(100)))


def test_a_pipe_is_no_tiff(tmp_path: Path, capsys: Said) -> None:
    os.mkfifo(tmp_path / "a.tif")
    assert "regular file" in refused(capsys, "info", tmp_path / "a.tif")
