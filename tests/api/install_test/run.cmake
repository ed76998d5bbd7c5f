# cmake -D BUILD_DIR= -D SOURCE_DIR= -D WORK_DIR= -P run.cmake: installs the build into an empty
# prefix, builds a separate project against the package, and runs it.
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE ${WORK_DIR})
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix)
run(${CMAKE_COMMAND} -S ${SOURCE_DIR}/tests/api/install_test -B ${WORK_DIR}/build
    -D CMAKE_PREFIX_PATH=${WORK_DIR}/prefix -D GENERATE_SOURCE=${SOURCE_DIR}/examples/generate.cc)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${CMAKE_COMMAND} -D OSTRO=${WORK_DIR}/prefix/bin/ostro -D GENERATE=${WORK_DIR}/build/generate
    -D SOURCE_DIR=${SOURCE_DIR} -D WORK_DIR=${WORK_DIR}/engine
    -P ${SOURCE_DIR}/tests/api/example_test.cmake)
