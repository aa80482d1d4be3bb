"""Reads the CUDA kernels that nvcc compiled, without any tool of CUDA.

Run by ctest as `compiled_kernels_test.py <object file>`. The object's fatbin
holds one ELF image per compute capability; every kernel is a section .text.NAME
of 16-byte instructions, whose low bits are the operation.

Checked per image: the binary linear multiplies with the 1-bit tensor-core
instruction (BMMA, not an emulation of it, or BGMMA of sm_90a), the fast one,
attention and the Float16 linear with the one for halves (HMMA; attention's
operands from LDSM), and no kernel touches local memory, which is where
registers spill to. The fast linear expands two weights with one LOP3. Registers
per thread are printed, and bounded: the binary linear must leave room for two
blocks of 256 threads on a multiprocessor.
"""

import collections
import pathlib
import re
import struct
import sys
import unittest

FATBIN_MAGIC = 0xBA55ED50
ELF_KIND = 2
# Of an attribute in .nv.info.
SIZED_FORM = 4
REGCOUNT_ATTRIBUTE = 0x2F
# Of an instruction's first word: the operation, without the kind of operands.
OPERATION_MASK = 0x1FF
BMMA = 0x03D
BGMMA = 0x1F2
HMMA = 0x03C
LDSM = 0x03B
LOP3 = 0x012
LOCAL = {0x183: "LDL", 0x187: "STL"}
REGISTERS_FOR_TWO_BLOCKS = 65536 // 512
# Kernels that multiply on tensor cores.
MULTIPLYING = ("MultiplyBinaryMos", "BatchBinaryMos", "FusedBinaryMos")

Kernel = collections.namedtuple("Kernel", "name operations registers")
Image = collections.namedtuple("Image", "capability kernels")


def images_of(data):
    """(compute capability, ELF image) of every fatbin in an object file."""
    position = 0
    magic = struct.pack("<I", FATBIN_MAGIC)
    while (position := data.find(magic, position)) >= 0:
        _, _, header_size, size = struct.unpack_from("<IHHQ", data, position)
        entry = position + header_size
        end = entry + size
        while entry < end:
            kind, _, entry_header, entry_size = struct.unpack_from(
                "<HHIQ", data, entry)
            capability = struct.unpack_from("<I", data, entry + 28)[0]
            payload = data[entry + entry_header:entry + entry_header +
                           entry_size]
            if kind == ELF_KIND:
                assert payload[:4] == b"\x7fELF", "a compressed fatbin"
                yield capability, payload
            entry += entry_header + entry_size
        position = end


def sections_of(elf):
    """{name: content} of a 64-bit ELF image."""
    offset = struct.unpack_from("<Q", elf, 0x28)[0]
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [
        struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * entry_size)
        for i in range(count)
    ]
    names = headers[names_index]
    sections = {}
    for header in headers:
        begin = names[4] + header[0]
        name = elf[begin:elf.index(b"\0", begin)].decode()
        is_empty = header[1] == 8  # SHT_NOBITS
        content = b"" if is_empty else elf[header[4]:header[4] + header[5]]
        sections[name] = content
    return sections


def registers_of(sections):
    """{kernel: registers per thread}, from the attributes beside the code."""
    symbols = sections[".symtab"]
    names = sections[".strtab"]
    attributes = sections[".nv.info"]
    registers = {}
    position = 0
    while position < len(attributes):
        form, attribute, size = struct.unpack_from("<BBH", attributes, position)
        if form == SIZED_FORM and attribute == REGCOUNT_ATTRIBUTE:
            symbol, count = struct.unpack_from("<II", attributes, position + 4)
            begin = struct.unpack_from("<I", symbols, symbol * 24)[0]
            name = names[begin:names.index(b"\0", begin)].decode()
            registers[name] = count
        position += 4 + (size if form == SIZED_FORM else 0)
    return registers


def operations_of(code):
    words = struct.unpack_from(f"<{len(code) // 8}Q", code)
    return collections.Counter(word & OPERATION_MASK for word in words[::2])


def demangled(name):
    """The kernel's name and template arguments, near enough."""
    match = re.search(r"RunINS0_(\d+)", name)
    if not match:
        return name
    begin = match.end()
    length = int(match.group(1))
    argument = name[begin + length:name.index("EEvT_")]
    return name[begin:begin + length] + "<" + argument.strip("IE") + ">"


def kernels_of(elf):
    sections = sections_of(elf)
    registers = registers_of(sections)
    for section, code in sorted(sections.items()):
        if section.startswith(".text."):
            name = section[len(".text."):]
            yield Kernel(demangled(name), operations_of(code), registers[name])


class CompiledKernelsTest(unittest.TestCase):
    object_file = None

    @classmethod
    def setUpClass(cls):
        data = pathlib.Path(cls.object_file).read_bytes()
        cls.images = [
            Image(capability, list(kernels_of(elf)))
            for capability, elf in images_of(data)
        ]

    def kernels(self, prefix=""):
        for image in self.images:
            for kernel in image.kernels:
                if kernel.name.startswith(prefix):
                    yield image.capability, kernel

    def test_there_are_images_with_kernels(self):
        self.assertTrue(self.images)
        for image in self.images:
            self.assertGreaterEqual(len(image.kernels), 18)
            self.assertGreaterEqual(image.capability, 80)

    def test_the_multiplication_is_on_one_bit_tensor_cores(self):
        found = 0
        for capability, kernel in self.kernels(MULTIPLYING):
            if capability < 90 and kernel.name.startswith("Fused"):
                continue  # needs clusters
            if capability >= 100:  # emulated from there on, by the hardware's
                continue           # maker; the arithmetic is the same
            with self.subTest(kernel=kernel.name, capability=capability):
                # Whole passes, unrolled or not: 8 instructions, or the two
                # tiles of a pair.
                whole = 2 if kernel.name.startswith("Fused") else 8
                self.assertGreaterEqual(kernel.operations[BMMA], whole)
                self.assertEqual(kernel.operations[BMMA] % whole, 0)
                found += 1
        self.assertGreaterEqual(found, 5)

    def test_warpgroups_multiply_with_their_own_instruction(self):
        found = 0
        for capability, kernel in self.kernels():
            is_warpgroup = kernel.name.startswith("Warpgroup")
            with self.subTest(kernel=kernel.name, capability=capability):
                self.assertEqual(kernel.operations[BGMMA],
                                 int(is_warpgroup and capability == 90))
                if is_warpgroup and capability != 90:  # never launched there
                    self.assertLess(sum(kernel.operations.values()), 64)
            found += int(is_warpgroup and capability == 90)
        hopper = [i for i in self.images if i.capability == 90]
        self.assertEqual(found, 6 * len(hopper))

    def test_the_float16_linear_is_on_tensor_cores(self):
        for capability, kernel in self.kernels(
                ("Float16Linear", "BatchFloat16Linear")):
            with self.subTest(kernel=kernel.name, capability=capability):
                # Four for 32 inputs and 8 rows, four times.
                self.assertEqual(kernel.operations[HMMA], 16)

    def test_the_fast_linear_spends_few_instructions_beside_its_products(self):
        for capability, kernel in self.kernels("FastBinaryMos"):
            tiles = int(re.search(r"\d+", kernel.name).group())
            steps, columns = 4, 8  # of a stage; of 8 tokens
            with self.subTest(kernel=kernel.name, capability=capability):
                self.assertEqual(kernel.operations[HMMA],
                                 steps * columns * tiles)
                # Four words of signs per tile and step, and what the end of
                # the kernel has.
                self.assertLessEqual(kernel.operations[LOP3],
                                     steps * 4 * tiles + 128)

    def test_the_fused_linear_is_empty_where_there_are_no_clusters(self):
        for capability, kernel in self.kernels("FusedBinaryMos"):
            size = sum(kernel.operations.values())
            with self.subTest(kernel=kernel.name, capability=capability):
                if capability < 90:
                    self.assertLess(size, 64)
                else:
                    self.assertGreater(size, 500)

    def test_attention_multiplies_halves_on_tensor_cores(self):
        found = 0
        for capability, kernel in self.kernels("Attention<"):
            with self.subTest(kernel=kernel.name, capability=capability):
                # Scores, values, and values token by token: pairs of tiles.
                self.assertGreaterEqual(kernel.operations[HMMA], 6)
                self.assertEqual(kernel.operations[HMMA] % 2, 0)
                self.assertGreaterEqual(kernel.operations[LDSM], 6)
                found += 1
        self.assertEqual(found, 3 * len(self.images))
        for _, kernel in self.kernels("FloatAttention"):
            self.assertEqual(kernel.operations[HMMA], 0)

    def test_nothing_else_claims_to_be_a_tensor_core_kernel(self):
        for _, kernel in self.kernels():
            if not kernel.name.startswith(MULTIPLYING):
                self.assertEqual(kernel.operations[BMMA], 0, kernel.name)

    def test_no_register_spills_to_memory(self):
        for capability, kernel in self.kernels():
            for operation, name in LOCAL.items():
                self.assertEqual(
                    kernel.operations[operation], 0,
                    f"{name} in {kernel.name} for sm_{capability}")

    def test_registers_are_recorded_and_bounded(self):
        print()
        for capability, kernel in self.kernels():
            print(f"  sm_{capability} {kernel.name}: {kernel.registers} "
                  f"registers, {sum(kernel.operations.values())} instructions")
            self.assertGreater(kernel.registers, 0)
            if kernel.name.startswith(
                ("Multiply", "Prepare", "Fused", "Warpgroup")):
                self.assertLessEqual(kernel.registers,
                                     REGISTERS_FOR_TWO_BLOCKS, kernel.name)


if __name__ == "__main__":
    CompiledKernelsTest.object_file = sys.argv.pop(1)
    unittest.main(verbosity=2)
