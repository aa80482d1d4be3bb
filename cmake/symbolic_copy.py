"""Copies a 64-bit little-endian ELF library and sets DF_SYMBOLIC in the copy.

The dynamic linker then looks for the library's own symbols in the library
first. Usage: symbolic_copy.py SOURCE DESTINATION
"""

import struct
import sys

PT_DYNAMIC = 2
DT_NULL = 0
DT_FLAGS = 30
DF_SYMBOLIC = 2


def main(source, destination):
    with open(source, "rb") as file:
        data = bytearray(file.read())
    if data[:6] != b"\x7fELF\x02\x01":
        sys.exit(f"{source}: not a 64-bit little-endian ELF file")
    (headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for at in range(headers, headers + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind != PT_DYNAMIC:
            continue
        for entry in range(offset, offset + length, 16):
            tag, value = struct.unpack_from("<qQ", data, entry)
            if tag == DT_FLAGS:
                struct.pack_into("<qQ", data, entry, tag, value | DF_SYMBOLIC)
                with open(destination, "wb") as file:
                    file.write(data)
                return
            if tag == DT_NULL:
                break
    sys.exit(f"{source}: has no DT_FLAGS to set")


if __name__ == "__main__":
    main(*sys.argv[1:])
