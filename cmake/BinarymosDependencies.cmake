# Everything comes from the distribution: scripts/install_deps.sh.
find_package(absl REQUIRED)

# The distribution's libsentencepiece.so exports a protobuf of its own, of
# another version, and whichever library comes first on the command line would
# take the other's calls. So ours is linked statically, and no program exports
# what it took from an archive.
set(Protobuf_USE_STATIC_LIBS ON)
find_package(Protobuf REQUIRED)
find_library(GRPCPP_REFLECTION libgrpc++_reflection.a REQUIRED)
# The fuzzers take no protobuf, and Clang's sanitizers are an archive whose
# operators new and delete every library must see.
if(NOT BINARYMOS_FUZZ)
  target_link_options(binarymos_options INTERFACE -Wl,--exclude-libs,ALL)
endif()
target_compile_options(
  binarymos_options
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fvisibility-inlines-hidden>)

find_package(gRPC REQUIRED)
find_package(spdlog REQUIRED)
find_package(prometheus-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(tomlplusplus REQUIRED IMPORTED_TARGET tomlplusplus)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
if(BINARYMOS_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
find_package(benchmark REQUIRED)
