# cmake -D OSTRO= -D GENERATE= -D SOURCE_DIR= -D WORK_DIR= -P example_test.cmake: the example
# generates what `ostro run` does.
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})
execute_process(COMMAND ${OSTRO} build --model_dir ${SOURCE_DIR}/models/tiny-mixtral
                        --output_dir ${WORK_DIR}/tiny COMMAND_ERROR_IS_FATAL ANY)
file(WRITE ${WORK_DIR}/prompts.csv "1,328,569,330,273,2661\n1,348,1902,1478,804\n")
execute_process(COMMAND ${OSTRO} run --engine_dir ${WORK_DIR}/tiny --max_output_len 12
                        --input_file ${WORK_DIR}/prompts.csv --output_csv ${WORK_DIR}/ids.csv
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${GENERATE} ${WORK_DIR}/tiny 12 1,328,569,330,273,2661 1,348,1902,1478,804
                OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
file(STRINGS ${WORK_DIR}/ids.csv rows)
set(id 0)
foreach(row ${rows})
  math(EXPR id "${id} + 1")
  if(NOT output MATCHES "\\[${id}\\] done: length, 12 tokens: ${row} ")
    message(FATAL_ERROR "`ostro run` generates ${row} from prompt ${id}, the example:\n${output}")
  endif()
endforeach()
execute_process(COMMAND ${GENERATE} ${WORK_DIR}/tiny 12 1,99999 RESULT_VARIABLE code
                ERROR_VARIABLE message)
if(NOT code EQUAL 2 OR NOT message MATCHES "token 1 of the prompt is 99999")
  message(FATAL_ERROR "a bad prompt gives code ${code} and: ${message}")
endif()
