"""Event files of TensorBoard, read without any package of it."""

import json
import struct


def crc32c(data):
    """The checksum of RFC 3720, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _records(data):
    """The payloads of a TFRecord file: length, its checksum, payload, checksum."""
    while data:
        length, length_crc = struct.unpack_from("<QI", data)
        payload = data[12 : 12 + length]
        (crc,) = struct.unpack_from("<I", data, 12 + length)
        assert length_crc == _masked(data[:8]) and crc == _masked(payload)
        yield payload
        data = data[16 + length :]


def _varint(data, place):
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _fields(data):
    """`(number, value)` of a protocol buffer."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        if key & 7 == 0:
            value, place = _varint(data, place)
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            if size is None:
                size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
        yield key >> 3, value


def board_points(run):
    """`(tag, step, float32)` of all event files of a run."""
    found = []
    for path in sorted((run / "tensorboard").iterdir()):
        for payload in _records(path.read_bytes()):
            event = dict(_fields(payload))
            for number, value in _fields(event.get(5, b"")):
                assert number == 1
                scalar = dict(_fields(value))
                (single,) = struct.unpack("<f", scalar[2])
                found.append((scalar[1].decode(), event.get(2, 0), single))
    return found


def logged_points(run):
    """The same, from metrics.jsonl."""
    found = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        whole = row.pop("summary", False)
        step, epoch = row.pop("step", None), row.pop("epoch")
        for name, value in row.items():
            (single,) = struct.unpack("<f", struct.pack("<f", value))
            tag = f"{'epochs' if whole else 'steps'}/{name}"
            found.append((tag, epoch if whole else step, single))
    return found
