"""A slow reader of hyperfs images, written from hyperfs-format(5) for clarity.

It shares no code with the tools: what it decodes and what fsck.hyperfs extracts must be the same
bytes. Rounding is done with exact rational numbers.

    tests/reference.py IMAGE PATH > FILE     the content of one file
"""

import hashlib
import struct
import sys
from fractions import Fraction

import xxhash
import zstandard

DTYPES = {14: "F16", 15: "BF16", 18: "F32", 20: "F64", 19: "C64", 12: "I16", 13: "U16",
          16: "I32", 17: "U32", 21: "I64", 22: "U64"}
BYTES_OF = {"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "F32": 4, "I32": 4, "U32": 4, "C64": 4,
            "F64": 8, "I64": 8, "U64": 8}
# mantissa bits behind the binary point, least exponent, bits of the exponent field
FLOATS = {"F16": (10, -14, 5), "BF16": (7, -126, 8), "F32": (23, -126, 8), "F64": (52, -1022, 11)}
ROTATED = {"F16", "BF16", "F32", "F64", "C64"}
BYTES_BLOCK = 262144
PAIRS = 65536


def checked(data, checksum):
    assert xxhash.xxh3_64_intdigest(data) == checksum, "checksum"
    return data


def unframe(frame, size):
    reader = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    data = reader.decompress(frame, max_output_size=size)
    assert len(data) == size
    return data


def float_bytes(value, dtype):
    """The float of the dtype that is nearest to a rational number, ties to even."""
    digits, least, exponent_bits = FLOATS[dtype]
    size = BYTES_OF[dtype]
    sign, value = (1, -value) if value < 0 else (0, value)
    bits = value.numerator.bit_length() - value.denominator.bit_length()
    exponent = max(least, bits - 1) if value else least
    while value >= Fraction(2) ** (exponent + 1):
        exponent += 1
    scaled = value / Fraction(2) ** (exponent - digits)  # an integer of digits + 1 bits
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2):
        whole += 1
    # A carry out of the mantissa is the next exponent, as the fields lie side by side.
    bits = whole + ((exponent - least) << digits)
    return (bits | sign << (digits + exponent_bits)).to_bytes(size, "little")


class Trajectory:
    """The table of a code record of type 3."""

    def __init__(self, body):
        (dtype, self.nu, self.s, self.g0, self.g1, self.u, self.z, b1x, b1y, b2x, b2y, self.i,
         mantissa, exponent, order, classes, self.map) = struct.unpack("<HBBHHIIiiiiIHhHHB3x", body)
        assert order == 0 and classes == 0
        self.dtype = DTYPES[dtype]
        self.e = BYTES_OF[self.dtype]
        self.step = mantissa * Fraction(2) ** exponent
        self.b1, self.b2 = (b1x, b1y), (b2x, b2y)
        self.block = PAIRS * 2 * self.e
        self.points = [self.rank(k) for k in range(4 if self.nu else 1)]
        self.values = {}

    def rank(self, phase):
        """The first I points of a phase by distance, ties by theta."""
        found = []
        # With a near-hexagonal basis the disc of I points reaches to about 1.21 sqrt(I) in m and n.
        reach = int(1.3 * self.i ** 0.5) // 2 * 2 + 4
        for m in range(phase % 2 - reach, reach, 2):
            for n in range(phase // 2 - reach, reach, 2):
                x = m * self.b1[0] + n * self.b2[0]
                y = m * self.b1[1] + n * self.b2[1]
                theta = (x - (m % 2) * self.b1[0] - (n % 2) * self.b2[0]) // 2 % self.u
                found.append((x * x + y * y, theta, x, y))
        found.sort()
        return [(x, y) for _, _, x, y in found[:self.i]]

    def pair(self, phase, i):
        key = (phase, i)
        if key not in self.values:
            assert i < self.i, "rank"
            x, y = self.points[phase][i]
            self.values[key] = (float_bytes(x * self.step, self.dtype) +
                                float_bytes(y * self.step, self.dtype))
        return self.values[key]

    def decode(self, data, size):
        if not self.map:
            return self.decode_pairs(data, size)
        count, at = size // self.e, 4
        stored, full = struct.unpack_from("<I", data)[0], -(-count // 8)
        bits = data[at:at + stored]
        bits = bits if stored == full else unframe(bits, full)
        here = [bits[k // 8] >> k % 8 & 1 for k in range(count)]
        rest = data[at + stored:]
        dense = self.decode_pairs(rest, sum(here) * self.e) if any(here) else rest
        values = (dense[k:k + self.e] for k in range(0, len(dense), self.e))
        return b"".join(next(values) if one else bytes(self.e) for one in here)

    def decode_pairs(self, data, size):
        n, odd, low_bits = size // (2 * self.e), size % (2 * self.e), self.s - 1
        exact, stored = struct.unpack_from("<II", data)
        parts, at = [], 8
        for length in (stored, -(-n * low_bits // 8), -(-n // 8) if self.nu else 0, 2 * exact,
                       2 * self.e * exact, odd):
            parts.append(data[at:at + length])
            at += length
        assert at == len(data), "length of a block"
        high, low, path, places, values, last = parts
        high = high if stored == n else unframe(high, n)
        low, path = int.from_bytes(low, "little"), int.from_bytes(path, "little")
        out, history = [], 0
        for t in range(n):
            i = high[t] << low_bits | (low >> t * low_bits & ((1 << low_bits) - 1))
            phase = 0
            if self.nu:
                b = path >> t & 1
                c0 = (history & self.g0).bit_count() % 2
                c1 = b ^ (history & self.g1).bit_count() % 2
                phase = c0 + 2 * c1
                history = (history << 1 | b) & ((1 << self.nu) - 1)
            out.append(self.pair(phase, i))
        for k in range(exact):
            place = struct.unpack_from("<H", places, 2 * k)[0]
            out[place] = values[2 * self.e * k:2 * self.e * (k + 1)]
        return b"".join(out) + last


class Planes:
    """Codes of type 1 (width 1) and 2."""

    block = BYTES_BLOCK

    def __init__(self, dtype):
        self.width = BYTES_OF[dtype] if dtype else 1
        self.rotated = dtype in ROTATED

    def decode(self, data, size):
        n, at, planes = size // self.width, 0, []
        for _ in range(self.width if n else 0):
            header = struct.unpack_from("<I", data, at)[0]
            mode, stored = header >> 24, header & 0xffffff
            body = data[at + 4:at + 4 + stored]
            at += 4 + stored
            planes.append(body if mode == 0 else body * n if mode == 1 else unframe(body, n))
        out = bytearray()
        for element in zip(*planes):
            if self.rotated:
                top = element[-2] | element[-1] << 8
                top = top >> 1 | (top & 1) << 15
                element = (*element[:-2], top & 255, top >> 8)
            out += bytes(element)
        return bytes(out) + data[at:]


class Image:
    def __init__(self, path):
        self.data = data = open(path, "rb").read()
        assert data[:8] == b"hyperfs\x1a" and data[:128] == data[-128:]
        (version, size, incompat, _, image_size, self.data_end, dir_offset, count, _,
         dir_checksum, self.blocks) = struct.unpack_from("<IIQQQQQIIQQ", data, 8)
        assert (version, size, incompat, image_size) == (1, 128, 0, len(data))
        checked(data[:120], struct.unpack_from("<Q", data, 120)[0])
        directory = checked(data[dir_offset:dir_offset + 40 * count], dir_checksum)
        self.sections = {}
        for k in range(count):
            kind, _, packing, offset, stored, raw, checksum = struct.unpack_from("<IHHQQQQ",
                                                                                 directory, 40 * k)
            section = checked(data[offset:offset + stored], checksum)
            self.sections[kind] = (zstandard.decompress(section, max_output_size=raw)
                                   if packing else section)
        self.check_digest(directory, dir_offset)
        self.codes = list(self.load_codes(self.sections[6]))
        self.index = list(self.load_index(self.sections[7]))

    def check_digest(self, directory, dir_offset):
        sha = lambda data: hashlib.sha256(data).digest()
        hashes, at, offset = self.sections[9], self.data_end, 128
        leaves, blocks = hashes[:len(hashes) - 32 * self.blocks], b""
        for n in range(len(leaves) // 32):
            count = min(256, self.blocks - 256 * n)
            leaf = self.data[at:at + 8 + 20 * count]
            at += len(leaf)
            own = b""
            for k in range(count):
                size = struct.unpack_from("<I", leaf, 8 + 20 * k)[0]
                own += sha(self.data[offset:offset + size])
                offset += size
            assert leaves[32 * n:32 * n + 32] == sha(leaf + own)
            blocks += own
        assert leaves + blocks == hashes
        sections = b""
        for k in range(len(directory) // 40):
            kind, offset, stored = struct.unpack_from("<I4xQQ", directory, 40 * k)
            if kind != 9:
                sections += sha(self.data[offset:offset + stored])
        self.digest = sha(b"hyperfs digest 1\n" + self.data[:80] + bytes(32)
                          + self.data[112:120] + bytes(8) + directory + sections + leaves)
        assert struct.unpack_from("<Q", self.data, 24)[0] & 1
        assert self.data[80:116] == self.digest + bytes([1, 0, 0, 0])

    def load_codes(self, records):
        at = 0
        while at < len(records):
            kind, _, length = struct.unpack_from("<HHI", records, at)
            body = records[at + 8:at + 8 + length]
            at += 8 + length
            if kind == 3:
                yield Trajectory(body)
            else:
                yield Planes(DTYPES[struct.unpack_from("<H", body)[0]] if kind == 2 else None)

    def load_index(self, checksums):
        at, left = self.data_end, self.blocks
        for (checksum,) in struct.iter_unpack("<Q", checksums):
            count = min(left, 256)
            leaf = checked(self.data[at:at + 8 + 20 * count], checksum)
            at += len(leaf)
            left -= count
            offset = struct.unpack_from("<Q", leaf)[0]
            for k in range(count):
                size, stored, content = struct.unpack_from("<IQQ", leaf, 8 + 20 * k)
                yield offset, size, stored, content
                offset += size

    def inode(self, number):
        fields = struct.unpack_from("<IIIIQqIIQII", self.sections[2], 56 * number)
        return dict(zip(("mode", "uid", "gid", "nlink", "size", "mtime", "nsec", "count", "first",
                         "parent", "reserved"), fields))

    def find(self, path):
        number = 0
        for name in path.encode().split(b"/"):
            directory = self.inode(number)
            for k in range(directory["first"], directory["first"] + directory["count"]):
                at, length, _, child = struct.unpack_from("<QHHI", self.sections[3], 16 * k)
                if self.sections[4][at:at + length] == name:
                    number = child
                    break
            else:
                raise FileNotFoundError(path)
        return self.inode(number)

    def read(self, path):
        file, out = self.find(path), bytearray()
        for k in range(file["first"], file["first"] + file["count"]):
            at, length, block, code, kind, _, _ = struct.unpack_from("<QQQIHHI", self.sections[5],
                                                                     36 * k)
            assert at == len(out)
            end = at + length
            while kind == 1 and len(out) < end:
                offset, size, stored, content = self.index[block]
                raw = min(self.codes[code].block, end - len(out))
                coded = checked(self.data[offset:offset + size], stored)
                out += checked(self.codes[code].decode(coded, raw), content)
                block += 1
            out += bytes(end - len(out))
        return bytes(out)


if __name__ == "__main__":
    sys.stdout.buffer.write(Image(sys.argv[1]).read(sys.argv[2]))
