# libostro.a, the public API and all that is behind it in one archive, and `cmake --install`:
#
#   find_package(ostro 0.1 REQUIRED)
#   target_link_libraries(program PRIVATE ostro::ostro)
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(libostro STATIC)
set_target_properties(libostro PROPERTIES OUTPUT_NAME ostro EXPORT_NAME ostro)
set(cuda_part)
if(OSTRO_CUDA)
  set(cuda_part backends_cuda comm_nccl)
  target_link_libraries(libostro PUBLIC CUDA::cudart)
endif()
foreach(part base tensor kv guide xgrammar quant comm checkpoint sched ops model plan engine api
             backends_cpu
             backends_cpu_avx2 backends_cpu_avx512 backends_cpu_avx512bf16 backends_cpu_amx ${cuda_part})
  target_sources(libostro PRIVATE $<TARGET_OBJECTS:${part}>)
endforeach()
target_include_directories(libostro INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                                              $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(libostro PUBLIC cxx_std_20)
target_link_libraries(libostro PUBLIC Threads::Threads)
set_target_properties(libostro PROPERTIES LINKER_LANGUAGE CXX)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ostro)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/ostroConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/ostroConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ostroConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(TARGETS libostro EXPORT ostro ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT ostro FILE ostroTargets.cmake NAMESPACE ostro:: DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/ostroConfig.cmake
              ${PROJECT_BINARY_DIR}/ostroConfigVersion.cmake DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ostro DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h")
install(TARGETS ostro RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
