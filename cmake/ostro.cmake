# ostro_library(NAME SRCS a.cc b.cc DEPS base tensor): a static library ostro::NAME of src/NAME.
function(ostro_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  string(REPLACE "/" "_" target ${name})
  add_library(${target} STATIC ${A_SRCS})
  add_library(ostro::${target} ALIAS ${target})
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
                                              $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
  ostro_compile_options(${target})
  foreach(dep ${A_DEPS})
    target_link_libraries(${target} PUBLIC ${dep})
  endforeach()
endfunction()

# The language level and warnings of every target of this project.
function(ostro_compile_options target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  # Not cuda_std_20: CMake 3.25 (Debian 12) does not know that nvcc 13 has it and then silently
  # builds C++17.
  target_compile_options(${target} PUBLIC $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror>)
  # Locations in error messages read src/..., whatever folder the project was built in.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=>)
endfunction()

# Tests of a release are compiled in less time: what they measure is in the libraries.
function(ostro_test_options target)
  target_compile_options(${target} PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O1>)
endfunction()

# ostro_test(ops/norm DEPS ops LABELS slow ARGS ...): builds tests/ops/norm_test.cc and registers it
# as ops.norm. The label is fast unless LABELS says otherwise; those labelled threads are built by
# the target thread_tests too, for ThreadSanitizer.
function(ostro_test path)
  cmake_parse_arguments(A "" "" "DEPS;LABELS" ${ARGN})
  string(REPLACE "/" "_" target ${path}_test)
  string(REPLACE "/" "." name ${path})
  add_executable(${target} ${PROJECT_SOURCE_DIR}/tests/${path}_test.cc)
  ostro_compile_options(${target})
  ostro_test_options(${target})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src
                                               ${PROJECT_SOURCE_DIR}/include
                                               ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${target} PRIVATE OSTRO_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${target} PRIVATE ${A_DEPS} GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${target})
  if(NOT A_LABELS)
    set(A_LABELS fast)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${OSTRO_TEST_TIMEOUT})
  if("threads" IN_LIST A_LABELS)
    add_dependencies(thread_tests ${target})
  endif()
endfunction()

# ostro_gpu_test(ops/norm SRCS more.cc): tests/ops/norm_test.cc once more as gpu.ops.norm, label gpu,
# which is skipped where there is no GPU.
function(ostro_gpu_test path)
  cmake_parse_arguments(A "" "" "SRCS" ${ARGN})
  string(REPLACE "/" "_" target gpu_${path}_test)
  string(REPLACE "/" "." name gpu.${path})
  set(cuda ${PROJECT_SOURCE_DIR}/tests/backends/cuda)
  add_executable(${target} ${PROJECT_SOURCE_DIR}/tests/${path}_test.cc ${cuda}/gpu_main.cc
                           ${cuda}/mirror.cc ${A_SRCS})
  ostro_compile_options(${target})
  ostro_test_options(${target})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE backends_cuda GTest::gtest)
  add_dependencies(gpu_tests ${target})
  add_test(NAME ${name} COMMAND ${target})
  set_tests_properties(${name} PROPERTIES LABELS gpu TIMEOUT 300 SKIP_RETURN_CODE 77)
endfunction()
