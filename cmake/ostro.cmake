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
  # Memory for time, a tenth of it: g++ collects its garbage beyond 1 GB, not beyond 128 MB.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:SHELL:--param ggc-min-heapsize=1000000>)
  # Locations in error messages read src/..., whatever folder the project was built in.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=>)
  # ccache gives the compiler paths that are relative to the build folder.
  file(RELATIVE_PATH up ${CMAKE_BINARY_DIR} ${PROJECT_SOURCE_DIR})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${up}=>)
endfunction()

# Tests of a release are compiled in less time: what they measure is in the libraries.
function(ostro_test_options target)
  target_compile_options(${target} PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O1>)
endfunction()

# ostro_test(text/utf8 DEPS text LABELS slow ...): tests/text/utf8_test.cc, registered as text.utf8. The
# tests of a folder are one executable, text_tests, in which each runs its own suites; with ALONE it
# has one of its own, text_utf8_test; with APART it is compiled alone in unity builds, since a name of
# its is a neighbour's too. The label is fast unless LABELS says otherwise; those labelled threads are
# built by the target thread_tests too, for ThreadSanitizer.
function(ostro_test path)
  cmake_parse_arguments(A "ALONE;APART" "" "DEPS;LABELS" ${ARGN})
  string(REPLACE "/" "." name ${path})
  get_filename_component(folder ${path} DIRECTORY)
  if(A_ALONE)
    string(REPLACE "/" "_" target ${path}_test)
  else()
    string(REPLACE "/" "_" target ${folder}_tests)
  endif()
  set(source ${PROJECT_SOURCE_DIR}/tests/${path}_test.cc)
  if(NOT TARGET ${target})
    add_executable(${target} ${source})
    ostro_compile_options(${target})
    ostro_test_options(${target})
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src
                                                 ${PROJECT_SOURCE_DIR}/include
                                                 ${PROJECT_SOURCE_DIR}/tests)
    target_compile_definitions(${target} PRIVATE OSTRO_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    target_link_libraries(${target} PRIVATE GTest::gtest_main)
  else()
    target_sources(${target} PRIVATE ${source})
  endif()
  target_link_libraries(${target} PRIVATE ${A_DEPS})
  if(A_APART)
    set_source_files_properties(${source} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
  set(command ${target})
  if(NOT A_ALONE)
    ostro_suites(${target} ${source} suites)
    list(APPEND command --gtest_filter=${suites})
  endif()
  add_test(NAME ${name} COMMAND ${command})
  if(NOT A_LABELS)
    set(A_LABELS fast)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${OSTRO_TEST_TIMEOUT})
  if("threads" IN_LIST A_LABELS)
    add_dependencies(thread_tests ${target})
  endif()
endfunction()

# ostro_suites(TARGET FILE VARIABLE): the filter of Google Test for the suites of a file, which no other
# file of the target has.
function(ostro_suites target file variable)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(STRINGS ${file} lines REGEX "^(TYPED_)?TEST(_F|_P)?\\(")
  set(filter)
  foreach(line ${lines})
    string(REGEX REPLACE "^[A-Z_]*\\(([A-Za-z0-9_]+).*" "\\1" suite "${line}")
    get_property(owner GLOBAL PROPERTY ostro_${target}_${suite})
    if(owner AND NOT owner STREQUAL file)
      message(FATAL_ERROR "${file} and ${owner} have a suite ${suite} each")
    endif()
    set_property(GLOBAL PROPERTY ostro_${target}_${suite} ${file})
    list(APPEND filter "${suite}.*" "${suite}/*" "*/${suite}.*")
  endforeach()
  if(NOT filter)
    message(FATAL_ERROR "${file} has no tests")
  endif()
  list(REMOVE_DUPLICATES filter)
  string(REPLACE ";" ":" filter "${filter}")
  set(${variable} "${filter}" PARENT_SCOPE)
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
