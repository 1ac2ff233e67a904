"""Smallest LIF and ND2 files, written from what is published of the formats, for tests of their readers.

Sources: the LIF layout as described with Leica's LAS (blocks 0x70, 0x2A; XML in UTF-16); ND2 chunks as `nd2` documents
them (magic 0x0ABECEDA, chunk map at the end), version 2 with its metadata as XML.
"""

from __future__ import annotations

import struct
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np


def write_lif(path: Path, images: dict[str, np.ndarray], *, pixel_um: float = 0.1, step_um: float = 0.3) -> None:
    """Write one image (C, Z, Y, X; uint8 or uint16) for each name."""
    elements, blocks = [], []
    for number, (name, image) in enumerate(images.items()):
        size = image.itemsize
        channels, planes, height, width = image.shape
        plane, bits = width * height * size, 8 * size
        described = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{bits}" NameOfMeasuredQuantity="" Min="0" '
            f'Max="1" Unit="" LUTName={quoteattr(("Green", "Red")[c])} IsLUTInverted="0" BytesInc="{c * plane}" '
            'BitInc="0"/>'
            for c in range(channels)
        )
        along = (
            (1, width, pixel_um, size),
            (2, height, pixel_um, width * size),
            (3, planes, step_um, channels * plane),
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{which}" NumberOfElements="{count}" Origin="0" '
            f'Length="{(count - 1) * step * 1e-6}" Unit="m" BitInc="0" BytesInc="{stride}"/>'
            for which, count, step, stride in along
        )
        elements.append(
            f'<Element Name={quoteattr(name)} UniqueID="{number}"><Data><Image><ImageDescription><Channels>{described}'
            f"</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{image.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
        )
        name_16 = f"MemBlock_{number}".encode("utf-16-le")
        head = struct.pack("<BQBI", 0x2A, image.nbytes, 0x2A, len(name_16) // 2) + name_16
        stored = image.transpose(1, 0, 2, 3).astype(image.dtype.newbyteorder("<"))  # channels within planes
        blocks.append(struct.pack("<II", 0x70, len(head)) + head + stored.tobytes())
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="x" UniqueID="x"><Memory Size="0" MemoryBlockID="m"/>'
        f"<Children>{''.join(elements)}</Children></Element></LMSDataContainerHeader>"
    ).encode("utf-16-le")
    head = struct.pack("<IIBI", 0x70, len(xml) + 5, 0x2A, len(xml) // 2)
    path.write_bytes(head + xml + b"".join(blocks))


def write_nd2(
    path: Path, image: np.ndarray, *, pixel_um: float = 0.1, step_um: float = 0.3, recorded: int | None = None
) -> None:
    """Write an image (Z, C, Y, X; uint16); `recorded` planes of it, for an experiment that was stopped."""
    planes, channels, height, width = image.shape
    recorded = planes if recorded is None else recorded
    attributes = {
        **{"uiWidth": width, "uiWidthBytes": 2 * width * channels, "uiHeight": height, "uiComp": channels},
        **{"uiBpcInMemory": 16, "uiBpcSignificant": 16, "uiSequenceCount": recorded, "uiTileWidth": width},
        **{"uiTileHeight": height, "eCompression": 2},
    }
    named = "".join(
        f'<a{c} runtype="CLxListVariant"><sDescription runtype="CLxStringW" value="channel {c}"/>'
        '<uiCompCount runtype="lx_uint32" value="1"/><pFluorescentProbe runtype="CLxListVariant"><m_sName '
        f'runtype="CLxStringW" value="dye"/></pFluorescentProbe></a{c}>'
        for c in range(channels)
    )
    metadata = (
        f'<bCalibrated runtype="bool" value="true"/><dCalibration runtype="double" value="{pixel_um}"/>'
        '<dTimeMSec runtype="double" value="0"/><dXPos runtype="double" value="0"/><dYPos runtype="double" value="0"/>'
        '<dZPos runtype="double" value="0"/><sPicturePlanes runtype="CLxListVariant">'
        f'<uiCount runtype="lx_uint32" value="{channels}"/><sPlaneNew runtype="CLxListVariant">{named}</sPlaneNew>'
        "</sPicturePlanes>"
    )
    loop = (
        '<eType runtype="lx_uint32" value="4"/><uLoopPars runtype="CLxListVariant">'
        f'<uiCount runtype="lx_uint32" value="{planes}"/><dZLow runtype="double" value="0"/>'
        f'<dZHigh runtype="double" value="{(planes - 1) * step_um}"/><dZStep runtype="double" value="{step_um}"/>'
        '<bZInverted runtype="bool" value="false"/><iType runtype="lx_int32" value="0"/>'
        '<dZHome runtype="double" value="0"/></uLoopPars>'
    )
    numbers = "".join(f'<{name} runtype="lx_uint32" value="{value}"/>' for name, value in attributes.items())
    chunks = {b"ImageAttributes!": _variant(numbers), b"ImageMetadataSeq|0!": _variant(metadata)}
    chunks |= {b"ImageMetadata!": _variant(loop)}
    chunks |= {
        f"ImageDataSeq|{z}!".encode(): bytes(8) + image[z].transpose(1, 2, 0).astype("<u2").tobytes()
        for z in range(recorded)
    }
    chunks[b"CustomData|AcqTimesCache!"] = np.arange(planes, dtype="<f8").tobytes()
    data = bytearray(_chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver2.1".ljust(64, b"\0"), 32))
    places = b""
    for name, payload in chunks.items():
        places += name + struct.pack("<QQ", len(data), len(payload))
        data += _chunk(name, payload, 4072)
    end = len(data)
    data += _chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", places + b"ND2 CHUNK MAP SIGNATURE 0000001!", 32)
    data += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", end)
    path.write_bytes(bytes(data))


def _variant(inside: str) -> bytes:
    text = f'<?xml version="1.0" encoding="UTF-8"?><variant version="1.0"><no_name runtype="CLxListVariant">{inside}'
    return f"{text}</no_name></variant>".encode()


def _chunk(name: bytes, payload: bytes, name_bytes: int) -> bytes:
    return struct.pack("<IIQ", 0x0ABECEDA, name_bytes, len(payload)) + name.ljust(name_bytes, b"\0") + payload
