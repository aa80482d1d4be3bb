"""Holds the source tree to the include table of CONTRIBUTING.md.

Run by ctest as `layering_test.py <source directory>`. Every #include of every
source file must be allowed for the room that the file lives in; a few names are
banned everywhere. The checks are themselves checked on planted violations.
"""

import pathlib
import re
import sys
import tempfile
import unittest

SOURCE_SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
# Rooms without a row of the table: tests may look anywhere.
UNCHECKED = ("tests/", "build/", "out/", "train/")

# Headers of libraries, by the beginning of their path.
LIBRARIES = {
    "absl": r"absl/",
    "grpc": r"grpc(pp|\+\+)?/",
    "protobuf": r"google/protobuf/|google/rpc/",
    "prometheus": r"prometheus/|civetweb|CivetServer",
    "spdlog": r"spdlog/|fmt/",
    "openssl": r"openssl/",
    "sentencepiece": r"sentencepiece",
    "json": r"nlohmann/",
    "cli11": r"CLI/",
    "toml": r"toml\+\+/",
    "benchmark": r"benchmark/",
    "testing": r"g(test|mock)/",
    "cuda": r"cuda|cublas|cub/|thrust/|cooperative_groups|cute/|mma\.h|nv",
}
# C and C++ standard headers, and the system's.
SYSTEM = re.compile(
    r"[a-z0-9_]+(\.h)?$|(sys|linux|arpa|netinet|bits|ext|asm)/[a-z0-9_/]+\.h$")
GENERATED = r"binarymos/v1/\w+(\.grpc)?\.pb\.h"

# Room (longest matching prefix of the path) -> own headers that it may include,
# libraries that it may use. Every room may include itself, the standard
# library, the system and Abseil.
TABLE = {
    "engine/api/": ([], []),
    "engine/core/": ([], []),
    "engine/kernels/reference/": ([r"engine/core/"], []),
    "engine/kernels/cpu/": ([r"engine/core/"], []),
    "engine/kernels/cuda/": ([r"engine/core/"], ["cuda"]),
    "engine/backend/": ([r"engine/(api|core)/"], []),
    "engine/model/": (
        [r"engine/core/", r"engine/backend/backend\.h"], ["json"]),
    "engine/": (
        [r"engine/(api|core|model)/",
         r"engine/backend/backend(_factory)?\.h",
         r"engine/\w+\.h"],
        ["json"]),
    "scheduler/": ([r"engine/api/", r"engine/core/(check|mutex)\.h"], []),
    "server/": (
        [r"scheduler/", r"engine/api/", r"engine/(engine|tokenizer)\.h",
         r"engine/core/(check|mutex)\.h", GENERATED],
        ["grpc", "protobuf", "spdlog"]),
    "bench/": (
        [r"engine/", r"scheduler/", r"server/", GENERATED],
        ["grpc", "protobuf", "json", "benchmark"]),
    "cli/": (
        [r"server/", r"bench/",
         r"engine/(engine|convert|inspect|perplexity|synthesize)\.h",
         GENERATED],
        ["grpc", "protobuf", "cli11"]),
}

# Single files (regular expressions) that may do more than their room.
EXCEPTIONS = [
    # Each backend knows its own kernels.
    (r"engine/backend/(cpu|host)_\w+\.(h|cc)",
     [r"engine/kernels/cpu/"], []),
    (r"engine/backend/reference_\w+\.(h|cc)",
     [r"engine/kernels/reference/"], []),
    (r"engine/backend/cuda_\w+\.(h|cc|cu)",
     [r"engine/kernels/cuda/"], ["cuda"]),
    (r"bench/cuda_\w+\.(h|cc|cu)", [], ["cuda"]),
    # Libraries that stay behind one file.
    (r"engine/tokenizer\.cc", [], ["sentencepiece"]),
    (r"(scheduler/block_hash|engine/manifest)\.cc", [], ["openssl"]),
    (r"server/metrics\.cc", [], ["prometheus"]),
    (r"cli/option_table\.cc", [], ["toml"]),
]

BANS = [
    (r'#\s*include\s*[<"]absl/synchronization/',
     "absl/synchronization is not built for ThreadSanitizer: "
     "engine/core/mutex.h"),
    (r'#\s*include\s*[<"]absl/log/',
     "absl/log does not exist in the distribution: engine/core/check.h"),
    (r"\bABSL_D?CHECK(_[A-Z]+)?\b",
     "ABSL_CHECK does not exist in the distribution: engine/core/check.h"),
    (r"\babsl::(Mutex|CondVar|Notification|BlockingCounter)\b",
     "absl::Mutex reports false races: engine/core/mutex.h"),
]

# Shows absl::Mutex to ThreadSanitizer, and so must name it.
UNBANNED = ("tests/sanitizers/absl_mutex_tsan.cc",)

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.M)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)


def library_of(header):
    for name, pattern in LIBRARIES.items():
        if re.match(pattern, header):
            return name
    return None


def room_of(path):
    rooms = [room for room in TABLE if path.startswith(room)]
    return max(rooms, key=len, default=None)


def in_room(header, room):
    """Whether `header` lives in `room` itself, not in a room below it."""
    return room_of(header) == room


def allowed(path, header):
    room = room_of(path)
    own, libraries = TABLE[room]
    for pattern, more_own, more_libraries in EXCEPTIONS:
        if re.fullmatch(pattern, path):
            own = own + more_own
            libraries = libraries + more_libraries
    library = library_of(header)
    if library is not None:
        return library == "absl" or library in libraries
    if room_of(header) is not None or re.match(r"binarymos/|tests/", header):
        return in_room(header, room) or any(
            re.match(pattern, header) for pattern in own)
    return SYSTEM.match(header) is not None


def check_file(path, text):
    """Violations of the file at `path`, relative to the root, as messages."""
    code = COMMENT.sub(lambda m: "\n" * m.group().count("\n"), text)
    problems = []
    bans = () if path in UNBANNED else BANS
    for pattern, reason in bans:
        for match in re.finditer(pattern, code):
            line = code.count("\n", 0, match.start()) + 1
            problems.append(f"{path}:{line}: {match.group().strip()}: {reason}")
    if path.startswith(UNCHECKED):
        return problems
    if room_of(path) is None:
        problems.append(f"{path}:1: lives in no room of the table")
        return problems
    for match in INCLUDE.finditer(code):
        header = match.group(1) or match.group(2)
        if not allowed(path, header):
            line = code.count("\n", 0, match.start(match.lastindex)) + 1
            problems.append(
                f"{path}:{line}: {room_of(path)} may not include {header}")
    return problems


def check_tree(root):
    problems = []
    num_files = 0
    for file in sorted(root.rglob("*")):
        path = file.relative_to(root).as_posix()
        if file.suffix not in SOURCE_SUFFIXES or path.startswith(
                ("build/", "out/", ".")):
            continue
        num_files += 1
        problems += check_file(path, file.read_text(encoding="utf-8"))
    return num_files, problems


class LayeringTest(unittest.TestCase):
    root = None

    def test_the_tree_keeps_to_the_table(self):
        num_files, problems = check_tree(self.root)
        self.assertGreater(num_files, 50)
        self.assertEqual(problems, [], "\n" + "\n".join(problems))


class PlantedViolationsTest(unittest.TestCase):

    def assert_caught(self, path, line):
        problems = check_file(path, f"// A comment.\n{line}\n")
        self.assertEqual(len(problems), 1, f"{path}: {line}: {problems}")
        self.assertIn(f"{path}:2: ", problems[0])

    def assert_passes(self, path, line):
        self.assertEqual(check_file(path, line + "\n"), [], path)

    def test_every_wall_stops_what_it_is_for(self):
        for path, line in [
            ("engine/api/types.h", '#include "engine/core/tensor.h"'),
            ("engine/core/tensor.h", '#include "engine/api/types.h"'),
            ("engine/core/tensor.cc", "#include <nlohmann/json.hpp>"),
            ("engine/kernels/reference/a.cc", '#include "engine/api/types.h"'),
            ("engine/kernels/cpu/a.cc", "#include <cuda_runtime.h>"),
            ("engine/kernels/cpu/a.cc",
             '#include "engine/kernels/reference/a.h"'),
            ("engine/kernels/cpu/a.cc", '#include "engine/backend/backend.h"'),
            ("engine/kernels/cuda/a.cu", '#include "engine/model/llama.h"'),
            ("engine/backend/backend.h", '#include "scheduler/request.h"'),
            ("engine/backend/backend_factory.cc",
             '#include "engine/kernels/cpu/attention.h"'),
            ("engine/backend/cpu_backend.cc",
             '#include "engine/kernels/cuda/attention.h"'),
            ("engine/backend/cuda_backend.cc",
             '#include "engine/kernels/cpu/attention.h"'),
            ("engine/model/llama.cc",
             '#include "engine/kernels/cpu/attention.h"'),
            ("engine/model/llama.cc",
             '#include "engine/backend/cpu_backend.h"'),
            ("engine/engine.cc", '#include "engine/backend/cpu_backend.h"'),
            ("engine/engine.cc", '#include "engine/kernels/cpu/attention.h"'),
            ("engine/engine.cc", '#include "scheduler/scheduler.h"'),
            ("engine/engine.cc", "#include <sentencepiece_processor.h>"),
            ("engine/tokenizer.h", "#include <sentencepiece_processor.h>"),
            ("engine/manifest.h", "#include <openssl/evp.h>"),
            ("engine/convert.cc", "#include <openssl/evp.h>"),
            ("engine/tokenizer.cc", "#include <google/protobuf/message.h>"),
            ("scheduler/scheduler.cc", "#include <openssl/evp.h>"),
            ("scheduler/scheduler.cc", "#include <grpcpp/grpcpp.h>"),
            ("scheduler/scheduler.cc", "#include <spdlog/spdlog.h>"),
            ("scheduler/scheduler.cc", '#include "engine/engine.h"'),
            ("scheduler/scheduler.cc", '#include "engine/core/tensor.h"'),
            ("scheduler/scheduler.cc", '#include "server/config.h"'),
            ("server/server.cc", "#include <prometheus/registry.h>"),
            ("server/server.cc", '#include "engine/core/tensor.h"'),
            ("server/server.cc", '#include "engine/model/llama.h"'),
            ("server/server.cc", '#include "cli/command.h"'),
            ("server/server.cc", "#include <CLI/CLI.hpp>"),
            ("cli/serve.cc", '#include "engine/core/mutex.h"'),
            ("cli/serve.cc", '#include "scheduler/scheduler.h"'),
            ("cli/serve.cc", "#include <cuda_runtime.h>"),
            ("cli/serve.cc", "#include <toml++/toml.h>"),
            ("cli/serve.cc", "#include <boost/asio.hpp>"),
            ("elsewhere/a.cc", "int x;"),
        ]:
            with self.subTest(path=path, line=line):
                if path.startswith("elsewhere"):
                    self.assertEqual(len(check_file(path, line)), 1)
                else:
                    self.assert_caught(path, line)

    def test_every_ban_holds_everywhere_tests_included(self):
        for path in ["engine/core/a.cc", "tests/engine/a_test.cc"]:
            for line in [
                '#include "absl/synchronization/mutex.h"',
                '#include "absl/log/check.h"',
                "ABSL_CHECK(x);",
                "ABSL_DCHECK_EQ(x, y);",
                "absl::Mutex mutex;",
            ]:
                with self.subTest(path=path, line=line):
                    self.assert_caught(path, line)

    def test_what_the_table_allows_passes(self):
        for path, line in [
            ("engine/core/tensor.h", "#include <sys/mman.h>"),
            ("engine/core/tensor.h", "#include <vector>"),
            ("engine/core/tensor.h", '#include "absl/status/status.h"'),
            ("engine/backend/cpu_backend.cc",
             '#include "engine/kernels/cpu/attention.h"'),
            ("engine/backend/cuda_backend.cc", "#include <cuda_runtime.h>"),
            ("engine/model/llama.cc", '#include "engine/backend/backend.h"'),
            ("engine/engine.cc", '#include "engine/backend/backend_factory.h"'),
            ("engine/tokenizer.cc", "#include <sentencepiece_processor.h>"),
            ("scheduler/block_hash.cc", "#include <openssl/evp.h>"),
            ("engine/manifest.cc", "#include <openssl/evp.h>"),
            ("server/metrics.cc", "#include <prometheus/registry.h>"),
            ("server/reactor.cc",
             '#include "binarymos/v1/inference.grpc.pb.h"'),
            ("cli/inspect.cc", '#include "engine/inspect.h"'),
            ("tests/server/a_test.cc", '#include "engine/model/llama.h"'),
            ("cli/a.cc", '// #include "scheduler/scheduler.h"'),
            ("cli/a.cc", '/* #include "scheduler/scheduler.h" */'),
        ]:
            with self.subTest(path=path, line=line):
                self.assert_passes(path, line)

    def test_a_tree_is_searched_to_its_leaves(self):
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            (root / "engine/kernels/cpu").mkdir(parents=True)
            (root / "engine/kernels/cpu/a.cc").write_text(
                '#include "server/config.h"\n')
            (root / "build/x").mkdir(parents=True)
            (root / "build/x/a.cc").write_text('#include "cli/a.h"\n')
            num_files, problems = check_tree(root)
        self.assertEqual(num_files, 1)
        self.assertEqual(problems, [
            "engine/kernels/cpu/a.cc:1: engine/kernels/cpu/ may not include "
            "server/config.h"])


if __name__ == "__main__":
    LayeringTest.root = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main(verbosity=2)
