# Defines binarymos_sentencepiece, which can be used beside protobuf.
#
# Debian's libsentencepiece.so holds an old protobuf-lite of its own and exports
# it, under the names of libprotobuf.so. In one process one of the two gets the
# other's functions: as linked by PkgConfig::sentencepiece, every program with
# generated code crashes before main(). There is no static library to hide the
# symbols of. So
# - libprotobuf comes first in every program, and keeps its own symbols;
# - a private copy of libsentencepiece has DF_SYMBOLIC set, and keeps its own.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
find_library(BINARYMOS_SENTENCEPIECE_LIBRARY sentencepiece REQUIRED)
find_path(BINARYMOS_SENTENCEPIECE_INCLUDE_DIR sentencepiece_processor.h REQUIRED)

# lib/ beside bin/, so that $ORIGIN finds it there and in an image.
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
set(sentencepiece_copy ${PROJECT_BINARY_DIR}/lib/libsentencepiece.so.0)
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
execute_process(
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/symbolic_copy.py
          ${BINARYMOS_SENTENCEPIECE_LIBRARY} ${sentencepiece_copy}
  COMMAND_ERROR_IS_FATAL ANY)

add_library(binarymos_sentencepiece SHARED IMPORTED GLOBAL)
set_target_properties(
  binarymos_sentencepiece
  PROPERTIES IMPORTED_LOCATION ${sentencepiece_copy}
             IMPORTED_SONAME libsentencepiece.so.0
             INTERFACE_INCLUDE_DIRECTORIES ${BINARYMOS_SENTENCEPIECE_INCLUDE_DIR})
# Link options stand before libraries, which decides who is asked first.
target_link_options(
  binarymos_sentencepiece INTERFACE
  "LINKER:--push-state,--no-as-needed" -lprotobuf "LINKER:--pop-state")
