"""Compute CRC-32C, the checksum of TensorFlow's checkpoints, with numpy.

One byte at a time Python manages some megabytes a second, and a checkpoint has hundreds. A CRC is
linear over GF(2), so the data is cut into lanes that are advanced together, and the lanes' sums are
joined in pairs: crc(a + b) = advance(crc(a), len(b)) ^ crc(b).
Source: RFC 3720, appendix B.4; the masked form: tensorflow/core/lib/hash/crc32c.h.
"""

from __future__ import annotations

import numpy as np

POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed
MASK_DELTA = 0xA282EAD8
SHORT_BYTES = 4096  # below, going byte by byte is faster than starting numpy 512 times
LANE_BYTES = 512
BLOCK_BYTES = 1 << 20  # so that the lanes stay in the processor's cache


def masked_crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the checksum as it stands in files: turned by 15 bits and shifted by a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of some bytes."""
    if len(data) < SHORT_BYTES:
        crc = 0xFFFFFFFF
        for byte in bytes(data):
            crc = SHORT_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    values = np.frombuffer(data, np.uint8)
    # The odd block comes first. Zeros in front of it change nothing, as its sum starts at zero; the
    # ones that a CRC-32C starts with are added to the first four bytes, which is the same.
    odd = (len(values) - 4) % BLOCK_BYTES + 4
    lanes = 1 << (-(-odd // LANE_BYTES) - 1).bit_length()
    block = np.zeros(lanes * LANE_BYTES, np.uint8)
    block[-odd:] = values[:odd]
    block[len(block) - odd :][:4] ^= 0xFF
    crc = _sum(block)
    for start in range(odd, len(values), BLOCK_BYTES):
        crc = _advance(crc, BLOCK_BYTES) ^ _sum(values[start : start + BLOCK_BYTES])
    return int(crc[0]) ^ 0xFFFFFFFF


def _sum(block: np.ndarray) -> np.ndarray:
    """Return (1,): the sum of a block of LANE_BYTES times a power of two, started at zero."""
    lanes = block.reshape(-1, LANE_BYTES)
    crc = np.zeros(len(lanes), np.uint32)
    for column in lanes.T:
        crc = TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
    width = LANE_BYTES
    while len(crc) > 1:
        crc = _advance(crc[0::2], width) ^ crc[1::2]
        width *= 2
    return crc


def _advance(crc: np.ndarray, count: int) -> np.ndarray:
    """Return sums after `count` more bytes of zero; `count` is a power of two."""
    return _apply(ADVANCES[count.bit_length() - 1], crc)


def _apply(matrix: np.ndarray, crc: np.ndarray) -> np.ndarray:
    """Multiply sums by a matrix (32,) over GF(2): row i is what bit i of a sum becomes."""
    result = np.zeros_like(crc)
    for bit, row in enumerate(matrix):
        result ^= np.where(crc >> bit & 1, row, np.uint32(0))
    return result


def _table() -> np.ndarray:
    """Return (256,): what each value of the lowest byte becomes after one byte of zero."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


def _advances() -> list[np.ndarray]:
    """Return the matrices (32,) of 1, 2, 4, ... BLOCK_BYTES bytes of zero."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    matrices = [TABLE[bits & 0xFF] ^ (bits >> 8)]
    while 1 << (len(matrices) - 1) < BLOCK_BYTES:
        matrices.append(_apply(matrices[-1], matrices[-1]))
    return matrices


TABLE = _table()
SHORT_TABLE = TABLE.tolist()  # plain integers are faster one by one
ADVANCES = _advances()
