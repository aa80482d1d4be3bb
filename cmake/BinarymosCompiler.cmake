# Language level, warnings, and the floating-point rules that canonical
# arithmetic needs (DESIGN section 6).
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

add_library(binarymos_options INTERFACE)
target_include_directories(binarymos_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(
  binarymos_options
  INTERFACE
    # A fused multiply-add appears where the source says so and nowhere else.
    $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-Wshadow;-Wnon-virtual-dtor;-Wno-missing-field-initializers>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:Clang>>:-Wthread-safety>)

# asan, ubsan, tsan as one list: -DBINARYMOS_SANITIZE="address,undefined". At
# -O1, and test cases (binarymos_test) at -O0, which compile in half of the time;
# arithmetic is the same at every level.
set(BINARYMOS_SANITIZE "" CACHE STRING "Sanitizers to build with")
if(BINARYMOS_SANITIZE)
  target_compile_options(
    binarymos_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${BINARYMOS_SANITIZE};$<IF:$<BOOL:$<TARGET_PROPERTY:BINARYMOS_TEST_PROGRAM>>,-O0,-O1>;-fno-omit-frame-pointer;-fno-sanitize-recover=all;-g1>)
  target_link_options(binarymos_options INTERFACE
                      -fsanitize=${BINARYMOS_SANITIZE})
endif()
